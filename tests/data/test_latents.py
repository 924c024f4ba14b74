"""Latents in shards: what the autoencoder gives, the same bytes however they are made, checked."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from data.encoding import encode
from PIL import Image

from edm2lite.dataset import open_dataset
from edm2lite.dataset.checks import find_problems
from edm2lite.dataset.encode import finish, shards_of_process, write_shards
from edm2lite.dataset.encode_plan import EncodePlan
from edm2lite.models.autoencoder import load_autoencoder
from edm2lite.models.encoders import EDM2_LATENTS, LatentEncoder, encoder_from_json


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def edit(folder, **changes):
    """Change the index of a data set."""
    index = json.loads((folder / "latents.json").read_text())
    (folder / "latents.json").write_text(json.dumps({**index, **changes}))


@pytest.fixture
def copy(latents, tmp_path):
    """A data set that a test may damage."""
    return shutil.copytree(latents, tmp_path / "copy")


def test_latents_are_those_of_the_autoencoder_image_by_image(latents, squares, vae):
    dataset, images = open_dataset(latents), open_dataset(squares)
    assert (len(dataset), dataset.image_shape) == (24, (4, 8, 8))
    assert dataset.labels.tolist() == images.labels.tolist()
    assert dataset.table.classes == ("flower", "temple")
    model = load_autoencoder(str(vae), "cpu").model
    for i in (0, 9, 10, 23):  # at the edges of the shards
        x = torch.from_numpy(images.images([i])).double() / 127.5 - 1
        with torch.no_grad():
            latent = model.double().encode(x).latent_dist
            expected = torch.cat([latent.mean, latent.std], dim=1)[0]
        # float32 against float64 through some twenty layers
        np.testing.assert_allclose(dataset.read(i), expected.numpy(), rtol=1e-3, atol=1e-4)
    model.float()


def test_measured_moments_are_those_of_fresh_draws(latents):
    dataset = open_dataset(latents)
    stored = dataset.images(range(24)).astype(np.float64)
    mean, std = stored[:, :4], stored[:, 4:]
    expected = mean.mean((0, 2, 3))
    variance = (mean**2 + std**2).mean((0, 2, 3)) - expected**2
    np.testing.assert_allclose(dataset.encoder.mean, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(dataset.encoder.std, np.sqrt(variance), rtol=1e-9)


def test_encoding_draws_and_standardizes():
    encoder = LatentEncoder(mean=(1.0, -2.0), std=(4.0, 0.5), sigma_data=0.5)
    rng = np.random.default_rng(0)
    raw, noise = rng.normal(size=(3, 4, 5, 6)), rng.normal(size=(3, 2, 5, 6))
    got = encoder.encode(torch.from_numpy(raw), torch.from_numpy(noise).float()).numpy()
    drawn = raw[:, :2] + raw[:, 2:] * noise
    shift, scale = (np.array(v)[:, None, None] for v in ((1.0, -2.0), (4.0, 0.5)))
    # values of up to 10 in float32, divided by 0.5
    np.testing.assert_allclose(got, (drawn - shift) / scale * 0.5, atol=1e-5)


def test_what_is_encoded_decodes_to_the_image_that_the_autoencoder_gives(latents, squares, vae):
    dataset, images = open_dataset(latents), open_dataset(squares)
    raw = torch.from_numpy(dataset.images(range(24)))
    decoded = dataset.encoder.decode(dataset.encoder.encode(raw, torch.zeros(24, 4, 8, 8)))
    assert decoded.dtype == torch.uint8 and decoded.shape == (24, 3, 32, 32)
    with torch.no_grad():
        direct = load_autoencoder(str(vae), "cpu").model.decode(raw[:, :4]).sample
    direct = np.clip(np.round(127.5 * (direct.numpy().astype(np.float64) + 1)), 0, 255)
    assert np.abs(decoded.numpy() - direct).max() <= 1  # a half that rounds the other way
    error = (decoded.double() - torch.from_numpy(images.images(range(24))).double()) / 127.5
    assert error.square().mean() < 0.15  # of a variance of 0.36: the right way up, in its colors


def test_the_convention_of_edm2_is_its_constants_and_images_of_0_to_1(squares, vae, tmp_path):
    encode(squares, tmp_path / "a", vae, convention="edm2")
    dataset, images = open_dataset(tmp_path / "a"), open_dataset(squares)
    assert dataset.encoder.mean == (5.81, 3.25, 0.12, -2.15)
    assert dataset.encoder.std == (4.17, 4.62, 3.71, 3.28)
    model = load_autoencoder(str(vae), "cpu").model
    with torch.no_grad():
        x = torch.from_numpy(images.images([3])) / 255
        mean = model.encode(x).latent_dist.mean
        expected = (model.decode(mean).sample.clamp(0, 1) * 255).to(torch.uint8)
    np.testing.assert_allclose(dataset.read(3)[:4], mean[0].numpy(), rtol=1e-3, atol=1e-4)
    x = dataset.encoder.encode(torch.from_numpy(dataset.images([3])), torch.zeros(1, 4, 8, 8))
    difference = dataset.encoder.decode(x).int() - expected.int()
    assert difference.abs().max() <= 1


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    """1000 images of 8 x 8, of two sizes."""
    folder = tmp_path_factory.mktemp("thousand") / "thousand"
    rng = np.random.default_rng(0)
    sizes, labels = [], []
    for i in range(1000):
        name, width = f"{i:05d}.png", 12 if i % 3 == 0 else 8
        folder.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, width, 3), dtype=np.uint8)).save(folder / name)
        sizes.append([name, 8, width])
        labels.append([name, i % 7])
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "sizes": sizes}))
    return folder


def test_interrupted_and_continued_or_shared_out_gives_the_same_bytes(thousand, vae, tmp_path):
    def plan(name):
        autoencoder = load_autoencoder(str(vae), "cpu")
        return EncodePlan(open_dataset(thousand), tmp_path / name, autoencoder, shard_images=150)

    whole = plan("whole")
    write_shards(whole)
    finish(whole)

    def interrupt(done, total):
        assert total == 1000
        if done > 500:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(plan("cut"), progress=interrupt)
    assert len(list((tmp_path / "cut").iterdir())) == 3  # 3 x 150 of the first 500, no more
    with pytest.raises(ValueError, match="has not ended; run the same .* encode command again"):
        open_dataset(tmp_path / "cut")
    again = plan("cut")
    assert sum(len(shard.positions) for shard in again.missing) == 1000 - 3 * 150
    write_shards(again)
    finish(again)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert not plan("cut").missing  # complete: the same call has nothing to do

    shared = [plan("shared") for _ in range(3)]
    for rank in (2, 1, 0):
        write_shards(shared[rank], rank=rank, world_size=3)
    finish(shared[0])
    assert contents(tmp_path / "shared") == contents(tmp_path / "whole")
    counts = [len(shards_of_process(plan("new"), rank, 3)) for rank in range(3)]
    assert sum(counts) == len(whole.shards) == 8 and max(counts) - min(counts) <= 1

    dataset, images = open_dataset(tmp_path / "whole"), open_dataset(thousand)
    sizes = np.unique(dataset.sizes, axis=0, return_counts=True)
    assert sizes[0].tolist() == [[2, 2], [2, 3]] and sizes[1].tolist() == [666, 334]
    rows = np.concatenate([shard.positions for shard in whole.shards])
    assert sorted(rows) == list(range(1000))
    np.testing.assert_array_equal(dataset.labels, images.labels[rows])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 4}, "it differs in batch_size"),
        ({"convention": "edm2"}, "it differs in convention"),
        ({"shard_images": 5}, "it differs in shard_images"),
    ],
)
def test_another_encoding_does_not_mix_with_one_that_is_there(
    options, message, latents, squares, vae
):
    before = contents(latents)
    with pytest.raises(ValueError, match=message):
        encode(squares, latents, vae, **options)
    assert contents(latents) == before


def test_a_folder_in_use_is_left_alone(squares, vae, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="must be free or hold the beginning of this encoding"):
        encode(squares, tmp_path, vae)
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def small(tmp_path, size=(32, 32), mode="RGB"):
    (tmp_path / "in").mkdir()
    Image.new(mode, size).save(tmp_path / "in" / "a.png")
    return tmp_path / "in"


def test_sides_that_do_not_divide_are_refused(vae, tmp_path):
    with pytest.raises(ValueError, match="multiples of 4 .* found 30 x 32"):
        encode(small(tmp_path, (32, 30)), tmp_path / "a", vae)
    assert not (tmp_path / "a").exists()


def test_gray_images_pass_as_gray_colors(vae, tmp_path):
    encode(small(tmp_path, mode="L"), tmp_path / "a", vae)
    assert open_dataset(tmp_path / "a").image_shape == (4, 8, 8)


def test_latents_are_not_encoded_again(latents, vae, tmp_path):
    with pytest.raises(ValueError, match="holds latents already"):
        encode(latents, tmp_path / "a", vae)


def test_damage_met_while_encoding_is_named_and_leaves_no_part(squares, vae, tmp_path):
    dataset = open_dataset(squares)
    plan = EncodePlan(dataset, tmp_path / "a", load_autoencoder(str(vae), "cpu"), shard_images=10)
    bias = plan.autoencoder.model.quant_conv.bias.data
    before = bias[0].item()
    bias[0] = float("nan")
    try:
        with pytest.raises(ValueError, match="latents of 00000/img00000000.png in .* finite"):
            write_shards(plan)
    finally:
        bias[0] = before
    assert list((tmp_path / "a").iterdir()) == []


def test_a_full_disk_is_noticed_before_anything_is_written(squares, vae, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ValueError, match="needs .* GiB, its disk has 0.0 GiB left"):
        encode(squares, tmp_path / "a", vae)
    assert not (tmp_path / "a").exists()


def test_an_autoencoder_that_is_none_is_explained(vae, tmp_path):
    with pytest.raises(ValueError, match="has no config.json"):
        load_autoencoder(str(tmp_path), "cpu")
    broken = shutil.copytree(vae, tmp_path / "broken")
    weights = broken / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(
        ValueError, match="broken must be a folder or Hub name .* loading it failed"
    ):
        load_autoencoder(str(broken), "cpu")


def test_the_vae_of_a_pipeline_is_found(vae, tmp_path):
    shutil.copytree(vae, tmp_path / "pipeline" / "vae")
    found = load_autoencoder(str(tmp_path / "pipeline"), "cpu")
    assert (found.factor, found.channels) == (4, 4)
    assert found.digest == load_autoencoder(str(vae), "cpu").digest


def test_an_autoencoder_may_have_moved(latents, vae, tmp_path, monkeypatch):
    moved = dataclasses.replace(open_dataset(latents).encoder, vae="/nowhere/vae")
    with pytest.raises(ValueError, match="/nowhere/vae, which is not there; set EDM2LITE_VAE"):
        moved.decode(torch.zeros(1, 4, 8, 8))
    monkeypatch.setenv("EDM2LITE_VAE", str(vae))
    expected = open_dataset(latents).encoder.decode(torch.zeros(1, 4, 8, 8))
    assert moved.decode(torch.zeros(1, 4, 8, 8)).equal(expected)


def test_other_weights_do_not_decode(latents, vae, tmp_path):
    other = shutil.copytree(vae, tmp_path / "other")
    from diffusers import AutoencoderKL

    model = AutoencoderKL.from_pretrained(other, low_cpu_mem_usage=False)
    model.post_quant_conv.bias.data += 1
    model.save_pretrained(other)
    wrong = LatentEncoder(vae=str(other)).completed(open_dataset(latents).encoder)
    assert wrong.vae_digest is None  # the config names another one on purpose
    encoder = LatentEncoder(
        vae=str(other), vae_digest=open_dataset(latents).encoder.vae_digest,
        mean=wrong.mean, std=wrong.std, input_range="-1..1",
    )  # fmt: skip
    with pytest.raises(ValueError, match="must be the one that made the latents"):
        encoder.decode(torch.zeros(1, 4, 8, 8))


def test_a_description_survives_the_model_file_and_is_completed_by_the_data_set():
    assert encoder_from_json(EDM2_LATENTS.to_json()) == EDM2_LATENTS
    stated = LatentEncoder(mean=(1.0,) * 4, std=(2.0,) * 4)
    done = stated.completed(EDM2_LATENTS)
    assert (done.mean, done.vae, done.input_range) == ((1.0,) * 4, EDM2_LATENTS.vae, "0..1")
    for wrong in ({"std": (1.0, 0.0), "mean": (0.0, 0.0)}, {"mean": (1.0,)}, {"sigma_data": 0.0}):
        with pytest.raises(ValueError, match="encoder"):
            LatentEncoder(**wrong)


def test_rows_are_read_without_the_rest_of_the_file(tmp_path):
    """A file of 48 GiB, nearly all of it a hole: more than most memories, read in no time."""
    count, row = 400_000, 8 * 64 * 64 * 4
    entry = {"dtype": "F32", "shape": [count, 8, 64, 64], "data_offsets": [0, count * row]}
    header = json.dumps({"latents": entry}).encode()
    with open(tmp_path / "latents-00000.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        start = file.tell()
        file.seek(start + 123_456 * row)
        file.write(np.arange(row // 4, dtype=np.float32).tobytes())
        file.truncate(start + count * row)
    index = {
        "format": "edm2lite.latents/1", "encoder": json.loads(EDM2_LATENTS.to_json()),
        "shards": [{"count": count, "size": [64, 64], "digest": None}],
        "label_dim": None, "classes": [], "settings": {},
    }  # fmt: skip
    (tmp_path / "latents.json").write_text(json.dumps(index))
    dataset = open_dataset(tmp_path)
    np.testing.assert_array_equal(dataset.read(123_456).reshape(-1), np.arange(row // 4))
    assert not dataset.read(0).any() and not dataset.read(count - 1).any()


def test_a_flipped_bit_is_found_by_name(copy):
    shard = copy / "latents-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-3000] ^= 1
    shard.write_bytes(data)
    assert any(
        "latents-00001.safetensors holds other bytes" in f
        for f in find_problems(open_dataset(copy))
    )


def test_a_latent_that_is_not_a_number_is_named(copy):
    from edm2lite.tensorfile import load_tensors, save_tensors

    tensors, metadata = load_tensors(copy / "latents-00002.safetensors")
    tensors["latents"][1, 2, 3, 4] = float("nan")
    tensors["latents"][2, 6, 0, 0] = -1
    path = save_tensors(copy / "latents-00002.safetensors", tensors, metadata)
    index = json.loads((copy / "latents.json").read_text())
    from edm2lite.tensorfile import read_header

    index["shards"][2]["digest"] = read_header(path).digest
    edit(copy, shards=index["shards"])
    found = list(find_problems(open_dataset(copy)))
    assert len(found) == 2
    assert "latents-00002.safetensors[1] in" in found[0] and "NaN" in found[0]
    assert "latents-00002.safetensors[2] in" in found[1] and "negative" in found[1]


def test_shards_that_do_not_belong_are_refused(copy):
    shutil.copy(copy / "latents-00000.safetensors", copy / "latents-00001.safetensors")
    with pytest.raises(ValueError, match="00001.safetensors belongs to another encoding"):
        open_dataset(copy)
    (copy / "latents-00001.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="there is no file .*latents-00001.safetensors"):
        open_dataset(copy)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "edm2lite.latents/9"},
        {"encoder": {"kind": "pixels"}},
        {"extra": 1},
        {"shards": []},
        {"shards": [{"count": 3}]},
        {"classes": None},
    ],
)
def test_an_index_of_another_kind_is_refused(change, copy):
    edit(copy, **change)
    with pytest.raises(ValueError, match="must be the index of a latent data set"):
        open_dataset(copy)


def test_an_autoencoder_that_a_file_names_is_not_downloaded(monkeypatch):
    from diffusers import AutoencoderKL

    asked = []

    def from_pretrained(name, local_files_only, use_safetensors, **more):
        asked.append((name, local_files_only, use_safetensors))
        raise OSError("not in the cache")

    monkeypatch.setattr(AutoencoderKL, "from_pretrained", from_pretrained)
    encoder = LatentEncoder(vae="a/b", mean=(0.0,), std=(1.0,), input_range="0..1")
    with pytest.raises(ValueError, match="cannot have it downloaded; set EDM2LITE_VAE=a/b"):
        encoder.decode(torch.zeros(1, 1, 2, 2))
    monkeypatch.setenv("EDM2LITE_VAE", "a/b")
    with pytest.raises(ValueError, match="loading it failed"):
        encoder.decode(torch.zeros(1, 1, 2, 2))
    with pytest.raises(ValueError, match="loading it failed"):
        EDM2_LATENTS.decode(torch.zeros(1, 4, 2, 2))  # that of the paper may be
    assert asked == [("a/b", True, True), ("a/b", False, True), (EDM2_LATENTS.vae, False, True)]


def test_a_damaged_shard_of_an_unfinished_encoding_is_encoded_again(
    latents, squares, copy, vae, caplog
):
    (copy / "latents.json").unlink()
    damaged, cut, whole = sorted(copy.glob("latents-*"))
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:-1])
    encode(squares, copy, vae)
    assert contents(copy) == contents(latents)
    assert caplog.text.count("its images are encoded again") == 2
    assert str(damaged) in caplog.text and str(cut) in caplog.text and str(whole) not in caplog.text
