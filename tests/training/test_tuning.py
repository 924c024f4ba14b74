"""Fine-tuning a run: what trains, what is saved, and what continues, for every kind."""

import dataclasses
import json

import pytest
import torch
from backbones import BACKBONES
from training_runs import digests, run_jobs

from edm2lite import load
from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.ema import list_snapshots, reconstruct
from edm2lite.ema.verification import verify_reconstruction
from edm2lite.models.encoders import PixelEncoder
from edm2lite.models.loading import load_adapter
from edm2lite.network.adapters import deltas_of
from edm2lite.tensorfile import ADAPTER_FORMAT, load_tensors, read_header, save_tensors
from edm2lite.training.config import load_config
from edm2lite.training.dry_run import report
from edm2lite.training.trainer import Trainer

CPU = torch.device("cpu")
KINDS = {
    "lora": "{kind: lora, rank: 2}",
    "embedding": "{kind: embedding, start: 4}",
    "hypernetwork": "{kind: hypernetwork}",
    "full": "{kind: full, freeze_uncertainty: true}",
}
TEXT = """
init: {init}
data: {{source: digits, classes: [9], per_class: 20, as_class: {label}}}
loss: {{P_mean: -0.4, P_std: 1.2}}
optim: {{ref_lr: 0.01, rampup_nimg: 0}}
tune: {tune}
batch_size: 4
microbatch: 4
total_nimg: 16
status_nimg: 16
snapshot_nimg: 8
checkpoint_nimg: 8
"""


def write(path, init, kind="lora"):
    label = 10 if kind == "embedding" else 9
    path.write_text(TEXT.format(init=init, tune=KINDS[kind], label=label))
    return str(path)


def train(config, out, *changes):
    trainer = Trainer(load_config(config, changes), out, CPU)
    trainer.train()
    return trainer


def output(model, label):
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return model.net(x, 0.7, torch.tensor(label)).detach()


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_trains_what_its_kind_says_and_continues_bit_for_bit(kind, run_dir, tmp_path):
    config, name = write(tmp_path / "t.yaml", run_dir, kind), f"{run_dir}"
    whole = train(config, tmp_path / "whole")
    base = load(name)
    stored = base.net.state_dict()
    for key, value in whole.net.state_dict().items():
        inner = key.replace(".parametrizations.weight.original", ".weight")
        if kind != "full" and inner in stored:
            assert value.equal(stored[inner]), key
    assert whole.net.logvar_linear.weight.equal(base.net.logvar_linear.weight)

    train(config, tmp_path / "parts", "total_nimg=8")
    train(config, tmp_path / "parts")
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")

    model = load(tmp_path / "whole")
    label = [10, 10] if kind == "embedding" else [9, 9]
    assert output(model, label).equal(whole_output(whole, label))
    if kind == "embedding":  # all other classes are what they were
        assert model.num_classes == 11
        assert output(model, [9, 2]).equal(output(base, [9, 2]))
        rms = whole.net.backbone.emb_learned.weight.square().mean(1).sqrt().detach()
        torch.testing.assert_close(rms, torch.ones(1))
    else:
        assert (output(model, label) - output(base, label)).abs().max() > 1e-4
    if kind != "full":
        size = (tmp_path / "whole" / "last.safetensors").stat().st_size
        assert size < (run_dir / "last.safetensors").stat().st_size / 5


def whole_output(trainer, label):
    trainer.net.eval()
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return trainer.net(x, 0.7, torch.tensor(label)).detach()


def test_snapshots_average_what_is_added_and_any_length_is_a_model(run_dir, tmp_path):
    """By hand: the average of s B A after every step, with the weights of Eq. 127."""
    out = tmp_path / "lora"
    trainer = Trainer(load_config(write(tmp_path / "t.yaml", run_dir)), out, CPU)
    layer, sums = "unet.enc.8x8_block0.conv_res0", {}
    gammas = dict(zip(trainer.ema.sigma_rels, trainer.ema.gammas, strict=True))
    while trainer.nimg < 16:
        trainer.train_step()
        trainer.nimg += 4
        trainer.ema.update(trainer.nimg)
        for sigma_rel, gamma in gammas.items():
            beta = (1 - 4 / trainer.nimg) ** (gamma + 1)
            now = deltas_of(trainer.net)[layer].double()
            sums[sigma_rel] = beta * sums.get(sigma_rel, 0) + (1 - beta) * now
        if trainer.nimg % 8 == 0:
            trainer.outputs.save_snapshots()
    trainer.outputs.finish_snapshots()
    inputs = trainer.net.training, torch.randn(1, 1, 8, 8)
    raw = trainer.net(inputs[1], 1.0, torch.tensor([9]))
    with trainer.ema.applied(0.05):
        averaged = trainer.net(inputs[1], 1.0, torch.tensor([9]))
    assert trainer.net(inputs[1], 1.0, torch.tensor([9])).equal(raw)
    trainer.close()
    for info in list_snapshots(out)[-2:]:
        tensors, metadata = load_tensors(info.path)
        assert set(tensors) == {f"{name}.delta" for name in deltas_of(trainer.net)}
        assert "model" not in metadata and json.loads(metadata["adapter"])["kind"] == "lora"
        found = tensors[f"{layer}.delta"].double()
        torch.testing.assert_close(found, sums[info.sigma_rel], atol=1e-7, rtol=1e-5)
    model = load(f"{out}@sigma_rel=0.05")
    torch.testing.assert_close(model.net(inputs[1], 1.0, torch.tensor([9])), averaged)
    assert model.metadata["sigma_rel"] == "0.05" and "adapter" not in model.metadata
    file = reconstruct(out, sigma_rel=0.05, out=tmp_path / "ema").path
    assert read_header(file).metadata["format"] == ADAPTER_FORMAT
    assert verify_reconstruction(file, out) == 4
    again = load(file)
    assert again.identity == model.identity
    assert again.net.get_submodule(layer).weight.equal(model.net.get_submodule(layer).weight)
    added = load_adapter(f"{out}@sigma_rel=0.05").deltas()[layer]
    assert (model.net.get_submodule(layer).weight - load(run_dir).net.get_submodule(layer).weight
            - added).abs().max() < 1e-6  # fmt: skip


def test_the_network_is_that_of_the_model_but_for_what_is_given(run_dir, tmp_path):
    path = write(tmp_path / "t.yaml", f"{run_dir}@sigma_rel=0.1")
    config = load_config(path, ["net.backbone.dropout=0.25"])
    base = load(run_dir)
    assert config.net.backbone.dropout == 0.25 and config.encoder == base.encoder
    assert config.net.backbone.model_channels == base.net.config.backbone.model_channels
    again = tmp_path / "again.yaml"
    again.write_text(config.to_yaml())
    assert load_config(str(again)) == config


def test_a_whole_network_in_the_file_leaves_the_encoder_that_of_the_model(run_dir, tmp_path):
    path = write(tmp_path / "t.yaml", run_dir)
    config = load_config(path, [f"net.backbone={backbone_text(run_dir)}"])
    assert config == load_config(path)
    assert config.encoder == load(run_dir).encoder != PixelEncoder()


@pytest.mark.parametrize(
    "changes, message",
    [
        (["init=null"], "init must be given with tune"),
        (["init=nowhere"], "no model at nowhere"),
        (["net.backbone.model_channels=32"], "net must be the network of .* leave net out"),
        (["tune.layers=[{pattern: nowhere}]"], "'nowhere' is in none of"),
        (["tune.rank=0"], "tune: rank must lie between 1 and 65536"),
        (["tune={kind: embedding, start: 10}"], "tune.start must be one of the 10 classes"),
        (["tune={kind: embedding, label: 12}"], "learned_classes must be classes below"),
        (["tune={kind: lura}"], "tune.kind must be one of lora"),
        (["data.classes=[11]"], "data.classes must be classes that digits has images of, got 11"),
        (["data.as_class=10"], "data.as_class must be one of the 10 classes"),
        (["data.per_class=0"], "per_class must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    changes, message, run_dir, tmp_path
):
    path = write(tmp_path / "t.yaml", run_dir)
    net = [f"net.backbone={backbone_text(run_dir)}"] if "init=null" in changes else []
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Trainer(load_config(path, [*net, *changes]), tmp_path / "out", CPU)
    assert not (tmp_path / "out").exists()


def backbone_text(run_dir):
    return json.dumps(json.loads(read_header(run_dir / "last.safetensors").metadata["model"])
                      ["backbone"])  # fmt: skip


def test_a_run_is_not_continued_with_another_model(run_dir, tmp_path):
    base, out = tmp_path / "base.safetensors", tmp_path / "out"
    tensors, metadata = load_tensors(run_dir / "last.safetensors")
    save_tensors(base, tensors, metadata)
    config = write(tmp_path / "t.yaml", base)
    train(config, out, "total_nimg=8")
    assert json.loads((out / "run.json").read_text())["base"] == load(base).identity
    save_tensors(base, {name: value * 2 for name, value in tensors.items()}, metadata)
    with pytest.raises(ValueError, match="must be the model that .* began with"):
        Trainer(load_config(config), out, CPU)
    with pytest.raises(ValueError, match="must be used with the model that it was trained on"):
        load(out)
    base.unlink()
    with pytest.raises(FileNotFoundError, match="which must be there to load it"):
        load(out)


@pytest.mark.slow
def test_processes_share_fine_tuning_or_say_why_not(run_dir, tmp_path):
    config = write(tmp_path / "t.yaml", run_dir)
    train(config, tmp_path / "one")

    def job(name, *changes):
        sets = [part for change in changes for part in ("--set", change)]
        return {"args": [config, "--out", str(tmp_path / name), *sets], "ranks": 2}

    codes, text = run_jobs(
        job("two"),
        job("sharded", "parallel=fsdp"),
        job("whole", "parallel=fsdp", "tune={kind: full, freeze_uncertainty: true}"),
        job("both", "tune={kind: full, freeze_uncertainty: true}"),
    )
    assert codes == [[0, 0], [1, 1], [0, 0], [0, 0]], text
    assert (
        "parallel must be ddp to train an adapter" in text and not (tmp_path / "sharded").exists()
    )
    for one, other in (("one", "two"), ("both", "whole")):
        expected, _ = load_tensors(tmp_path / one / "last.safetensors")
        found, _ = load_tensors(tmp_path / other / "last.safetensors")
        assert found.keys() == expected.keys()
        for name, value in expected.items():  # four steps of Adam on sums taken in other orders
            torch.testing.assert_close(
                found[name], value, rtol=0, atol=2e-3 * float(value.abs().max())
            )


@pytest.mark.parametrize("kind", KINDS)
def test_a_dry_run_counts_what_is_trained(kind, run_dir, tmp_path):
    config = load_config(write(tmp_path / "t.yaml", run_dir, kind))
    text = report(config, tmp_path / "out", world_size=1)
    trainer = Trainer(config, tmp_path / "out", CPU)
    trained = sum(p.numel() for p in trainer.net.parameters() if p.requires_grad)
    total = sum(p.numel() for p in trainer.net.parameters())
    trainer.close()
    assert f"parameters   {total}, of which {trained} are trained" in text


@pytest.mark.parametrize("tune", [KINDS["lora"], "{kind: embedding}", KINDS["hypernetwork"]])
@pytest.mark.parametrize("name", BACKBONES)
def test_every_network_is_tuned_from_a_file_of_its_own(name, tune, tmp_path):
    torch.manual_seed(0)
    backbone = dataclasses.replace(BACKBONES[name], img_channels=1, label_dim=10)
    net = Precond(PrecondConfig(backbone=backbone))
    for parameter in net.parameters():
        if parameter.ndim < 2 or not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    base = net.save(tmp_path / "base.safetensors")
    config = tmp_path / "t.yaml"
    label = 10 if "embedding" in tune else 9
    config.write_text(TEXT.format(init=base, tune=tune, label=label))
    trainer = train(str(config), tmp_path / "out", "total_nimg=8")
    assert trainer.config.net.backbone.kind == name
    model = load(tmp_path / "out")
    found, before = output(model, [label, label]), output(load(base), [9, 9])
    torch.testing.assert_close(found, whole_output(trainer, [label] * 2), atol=1e-6, rtol=1e-6)
    assert (found - before).abs().max() > 1e-4
