"""Folders of official EDM2 snapshots as runs, and the command that imports them."""

import dataclasses

import pytest
import torch
from click.testing import CliRunner
from official_files import (
    LATENTS,
    TINY,
    random_net,
    vae_encoder,
    write,
)

import edm2lite as package
from edm2lite.diffusion.precond import Precond
from edm2lite.ema import PowerFunctionEMA, list_snapshots, reconstruct
from edm2lite.interop import edm2_network
from edm2lite.interop.edm2 import import_folder
from edm2lite.models.encoders import EDM2_LATENTS, PixelEncoder, encoder_from_json
from edm2lite.tools.edm2lite import main as edm2lite


def training_run(folder, *, dtype, num):
    """Weights that walk, averaged by ourselves and saved as EDM2 does; the average of 0.07."""
    net = random_net()
    lengths = (0.05, 0.10)
    ema = PowerFunctionEMA(net.requires_grad_(True), (*lengths, 0.07), dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    stride = 2**20
    for k in range(1, 8 * num + 1):
        with torch.no_grad():
            for p in net.parameters():
                p += 0.01 * torch.randn(p.shape, generator=generator)
        ema.update(k * stride)
        if k % 8 == 0:
            for length in lengths:
                copy = Precond(net.config)
                copy.load_state_dict(ema.state_dict_of(length))
                name = f"network-snapshot-{k * stride // 1000:07d}-{length:.3f}.pkl"
                write(folder / name, copy.to(dtype))
    write(folder / "network-snapshot-0000000-0.050.pkl", random_net().to(dtype))
    (folder / "training-state-0008388.pt").write_bytes(b"not looked at")
    return ema.state_dict_of(0.07)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_folder_of_raw_snapshots_becomes_a_run_that_is_rebuilt(tmp_path, dtype):
    truth = training_run(tmp_path / "official", dtype=dtype, num=10)
    reports = []
    written = import_folder(
        tmp_path / "official", tmp_path / "run", batch_size=2**20,
        progress=lambda done, total: reports.append((done, total)),
    )  # fmt: skip
    infos = list_snapshots(tmp_path / "run")
    assert sorted(info.path for info in infos) == sorted(written) and len(infos) == 20
    assert [info.nimg for info in infos[::2]] == [8 * 2**20 * k for k in range(1, 11)]
    assert {info.sigma_rel for info in infos} == {0.05, 0.10}
    assert {info.dtype for info in infos} == {str(dtype).removeprefix("torch.")}
    assert infos[-1].history == ((2**20, 80),)
    assert reports == sorted(reports) and reports[-1][0] == reports[-1][1] and len(reports) == 20
    built = reconstruct(tmp_path / "run", sigma_rel=0.07)
    names = [name for name, _ in random_net().named_parameters()]
    error = sum(float((built.state_dict[n] - truth[n]).square().sum()) for n in names)
    norm = sum(float(truth[n].square().sum()) for n in names)
    # what the reconstruction promises, which is little: walks are what its model describes
    assert (error / norm) ** 0.5 < 1.5 * built.predicted_error < 3e-4
    model = package.load(f"{tmp_path / 'run'}@sigma_rel=0.07")
    assert model.net.config.backbone == TINY and model.encoder == PixelEncoder()


def test_the_network_of_a_run_is_built_once_for_all_of_its_files(tmp_path, monkeypatch):
    """An import is as slow as reading and writing, see benchmarks/import_folder.py."""
    built = []
    monkeypatch.setattr(
        edm2_network, "Precond", lambda config: built.append(config) or Precond(config)
    )
    edm2_network._shapes.cache_clear()
    training_run(tmp_path / "official", dtype=torch.float16, num=2)
    import_folder(tmp_path / "official", tmp_path / "run")
    assert len(list_snapshots(tmp_path / "run")) == 4 and len(built) == 1


def test_latents_are_still_known_after_reconstruction(tmp_path):
    for kimg in (1048, 2097):
        for length in ("0.050", "0.100"):
            path = tmp_path / "a" / f"n-{kimg:07d}-{length}.pkl"
            write(path, random_net(LATENTS), encoder=vae_encoder())
    import_folder(tmp_path / "a", tmp_path / "run")
    built = reconstruct(tmp_path / "run", sigma_rel=0.05)
    assert encoder_from_json(built.metadata["encoder"]) == EDM2_LATENTS


def test_a_folder_is_imported_whole_or_not_at_all(tmp_path):
    folder, run = tmp_path / "a", tmp_path / "run"
    for kimg in (1048, 2097):
        for length in ("0.050", "0.100"):
            write(folder / f"n-{kimg:07d}-{length}.pkl", random_net())

    def refused(message, kind=ValueError):
        with pytest.raises(kind, match=message):
            import_folder(folder, run)
        assert not list(run.glob("*")), "nothing is left behind"

    last = folder / "n-0002097-0.100.pkl"
    whole = last.read_bytes()
    last.write_bytes(whole[:-1000])
    refused("n-0002097-0.100.pkl is cut short")
    write(last, random_net(seed=1))
    refused("different networks")
    write(last, random_net(dataclasses.replace(TINY, label_dim=0)))
    refused("different networks")
    last.write_bytes(whole)
    (folder / "phema-0002097-0.135.pkl").write_bytes(whole)
    refused("files of n, phema")
    (folder / "phema-0002097-0.135.pkl").rename(folder / "n-0002097-0.400.pkl")
    refused("n-0002097-0.400.pkl must have a time and a length")
    (folder / "n-0002097-0.400.pkl").unlink()
    import_folder(folder, run)
    with pytest.raises(ValueError, match="snapshots exists"):
        import_folder(folder, run)
    assert len(list_snapshots(run)) == 4
    with pytest.raises(FileNotFoundError, match="holds none"):
        import_folder(tmp_path, run / "b")
    with pytest.raises(ValueError, match="batch_size"):
        import_folder(folder, run / "b", batch_size=0)


def command(*words):
    return CliRunner().invoke(edm2lite, ["import", *map(str, words)])


def test_the_command_tells_the_formats_apart_and_names_mistakes(tmp_path):
    path = write(tmp_path / "a" / "edm2-0001048-0.050.pkl", random_net())
    result = command(path)
    made = path.with_suffix(".safetensors")
    assert result.exit_code == 0 and result.stdout.strip() == str(made) and made.is_file()
    assert "new file" in command(path).output, "nothing is overwritten"
    result = command(tmp_path / "a")
    assert result.exit_code == 0 and f"1 snapshots in {tmp_path}/a-imported" in result.stdout
    assert len(list_snapshots(tmp_path / "a-imported")) == 1
    result = command(path, "--update-every", 10)
    assert result.exit_code == 2 and "--out and --batch-size only" in result.output
    (tmp_path / "a" / "0.100.pt").touch()
    assert "give each its own folder" in command(tmp_path / "a").output
    path.unlink()
    assert "needs --update-every" in command(tmp_path / "a", "--sigma-rel", "0.05").output
    assert "must be a network pickle" in command(tmp_path / "nowhere").output
    assert "(.pkl)" in command(made).output
    made.unlink()
    path.write_bytes(b"")
    result = command(path)
    assert result.exit_code == 1 and "cut short" in result.output
