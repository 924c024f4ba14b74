"""Thousands of damaged files for all readers: a ValueError or an OSError soon, and nothing else."""

import gzip
import io
import json
import pickle
import random
import resource
import signal
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from damage import damaged, damaged_header, damaged_json, damaged_metadata
from interop.official_files import SMALL, official_bytes, random_net
from PIL import Image

import edm2lite
from edm2lite.dataset import open_dataset
from edm2lite.dataset.collection import open_collection
from edm2lite.dataset.shards import Index, open_shards, shard_name
from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.ema import PowerFunctionEMA
from edm2lite.ema.snapshot import read_info
from edm2lite.ema.verification import _recorded_inputs
from edm2lite.interop.edm2_network import read_network
from edm2lite.interop.torch_files import read_tensors
from edm2lite.metrics.feature_stats import FeatureStats
from edm2lite.metrics.other_statistics import read_other
from edm2lite.models.encoders import EDM2_LATENTS, PixelEncoder
from edm2lite.models.model_card import model_card
from edm2lite.network.unet import UNetConfig
from edm2lite.sampling.image_folder import ImageFolder
from edm2lite.tensorfile import load_tensors, read_header, save_tensors
from edm2lite.training import load_config, manifest
from edm2lite.training.run_folder import _identifier

UNET = UNetConfig(
    img_resolution=8, img_channels=1, label_dim=3, model_channels=8, channel_mult=(1,),
    num_blocks=1, attn_resolutions=(), head_channels=8,
)  # fmt: skip
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
TABLE = {
    "labels": [[f"{i}.png", i] for i in range(3)], "label_dim": 3, "classes": ["a", "b", "c"],
    "sizes": [[f"{i}.png", 8, 8] for i in range(3)],
    "conditions": {"image": [[f"{i}.png", f"c{i}.png"] for i in range(3)]},
    "condition_normalization": {"image": {"mean": 100.0, "std": 50.0}},
}  # fmt: skip


def png(pixels, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def images(folder):
    for i in range(3):
        (folder / f"{i}.png").write_bytes(png(PIXELS[i]))
        (folder / f"c{i}.png").write_bytes(png(PIXELS[i]))
    (folder / "dataset.json").write_text(json.dumps(TABLE))


def read_all(path):
    dataset = open_dataset(path)
    assert len(dataset) <= 16
    for i in range(len(dataset)):
        dataset.read(i)
        dataset.conditioning([i])


def saved_model(path):
    torch.manual_seed(0)
    net = Precond(PrecondConfig(backbone=UNET))
    inputs = [{"file": "a", "digest": "0" * 32, "coefficient": 1.0}]
    more = {"nimg": "64", "sigma_rel": "0.1", "inputs": json.dumps(inputs), "run": "a1"}
    return net.save(path, {"encoder": PixelEncoder().to_json(), **more})


def make_snapshot(folder):
    ema = PowerFunctionEMA({"w": torch.ones(3)}, [0.1], run="a1")
    for nimg in (64, 128):
        ema.update(nimg)
        (path,) = ema.save_snapshots(folder)
    return path


def make_latents(folder):
    latents = torch.arange(4 * 8 * 2 * 2).reshape(4, 8, 2, 2) / 99 + 0.1
    shard = save_tensors(folder / shard_name(0), {"latents": latents}, {})
    entry = {"count": 4, "size": [2, 2], "digest": read_header(shard).digest}
    Index(EDM2_LATENTS, [entry], 3, ("a", "b", "c"), {}).write(folder, np.arange(4) % 3)


def make_npy(folder):
    return written(folder / "0.npy", npy(np.linspace(0, 1, 128, dtype="f4").reshape(8, 4, 4)))


def make_zip(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(3):
            archive.writestr(zipfile.ZipInfo(f"{i}.png"), png(PIXELS[i]))
        table = json.dumps({"labels": TABLE["labels"]})
        archive.writestr(zipfile.ZipInfo("dataset.json"), table, zipfile.ZIP_DEFLATED)
    return path


def make_statistics(folder, kind):
    mean, cov = np.linspace(-1, 1, 16), np.eye(16)
    if kind == "npz":
        with zipfile.ZipFile(folder / "s.npz", "w") as archive:
            for name, array in (("mu.npy", mean), ("sigma.npy", cov)):
                archive.writestr(zipfile.ZipInfo(name), npy(array), zipfile.ZIP_DEFLATED)
    elif kind == "pkl":
        (folder / "s.pkl").write_bytes(pickle.dumps({"fid": {"mu": mean, "sigma": cov}}, 4))
    else:
        stats = FeatureStats(9, mean, cov, "digits", "w", "ab", "made up", (1, 8, 8))
        stats.save(folder / "s.safetensors")
    return folder / f"s.{kind}"


def make_torch(folder, legacy):
    tensors = {"w": torch.ones(4, 3), "n": torch.arange(3), "h": torch.ones(5).half()}
    torch.save(tensors, folder / "w.pt", _use_new_zipfile_serialization=not legacy)
    return folder / "w.pt"


def make_generated(folder):
    (folder / "000000").mkdir()
    (folder / "000000" / "000000.png").write_bytes(png(PIXELS[0]))
    (folder / "settings.json").write_text(json.dumps({"weights": "a1", "sigma_max": float("inf")}))
    (folder / "dataset.json").write_text(json.dumps({"labels": [["000000/000000.png", 3]]}))


def make_checkpoint(folder):
    (folder / "x").write_bytes(b"abc")
    manifest.write(folder, {"x": manifest.entry(folder / "x")})
    return folder / manifest.NAME


def written(path, content):
    path.write_bytes(content)
    return path


def official(folder):
    torch.manual_seed(0)
    return written(folder / "n.pkl", official_bytes(random_net(SMALL).half()))


def mnist(folder):
    header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in PIXELS.shape)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(
        gzip.compress(header + PIXELS.tobytes(), mtime=0)
    )
    labels = bytes([0, 0, 8, 1, 0, 0, 0, 3, 0, 1, 2])
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels, mtime=0))
    return folder / "train-images-idx3-ubyte.gz"


def cifar(folder):
    batch = {b"data": bytes(range(256)) * 24, b"labels": [3, 7]}
    for i in range(1, 6):
        (folder / f"data_batch_{i}").write_bytes(pickle.dumps(batch, 2))
    return folder / "data_batch_1"


def within(make, name):
    """A function that makes the files and returns the one to damage."""

    def made(folder):
        make(folder)
        return folder / name

    return made


def card(path):
    return model_card(read_header(path).metadata, "mit", "x")


def generated(path):
    ImageFolder(path.parent).open({"weights": "a1", "sigma_max": float("inf")}, [0, 1])


def list_file(name, text):
    def made(folder):
        images(folder)
        return written(folder / name, text.encode())

    return made


def collected(path):
    collection = open_collection(path)
    for i in range(len(collection.names)):
        collection.load(i)


CSV = 'path,label,condition\n0.png,cat,c0.png\n1.png,dog,c1.png\n"2.png",dog,c2.png\n'
JSONL = "".join(f'{{"path": "{i}.png", "label": {i}, "condition": "c{i}.png"}}\n' for i in range(3))


def foreign(folder):
    tensors = {"a": torch.ones(3), "b": torch.arange(4), "c": torch.tensor([True, False])}
    safetensors.torch.save_file(tensors, folder / "x.safetensors", {"format": "pt"})
    return folder / "x.safetensors"


def model(folder):
    return saved_model(folder / "m.safetensors")


def config(folder):
    return written(folder / "config.yaml", load_config("digits").to_yaml().encode())


def in_turn(*ways):
    """Damage of several kinds, one after the other."""
    return lambda data, rng: rng.choice(ways)(data, rng)


FORGED = in_turn(damaged_header, damaged_metadata)


# reader: what makes the files and returns the one to damage, what reads it, how it is damaged, how
# many times
def _run(path):
    return _identifier(path, None)


READERS = {
    "safetensors": (foreign, load_tensors, in_turn(damaged, damaged_header), 400),
    "snapshot": (make_snapshot, read_info, FORGED, 400),
    "model": (model, edm2lite.load, FORGED, 120),
    "model card": (model, card, damaged_metadata, 60),
    "inputs": (model, lambda p: _recorded_inputs(read_header(p)), damaged_metadata, 150),
    "statistics": (lambda f: make_statistics(f, "safetensors"), FeatureStats.load, FORGED, 250),
    "statistics, npz": (lambda f: make_statistics(f, "npz"), read_other, damaged, 400),
    "statistics, pkl": (lambda f: make_statistics(f, "pkl"), read_other, damaged, 400),
    "network, pkl": (official, read_network, damaged, 100),
    "torch, ZIP": (lambda f: make_torch(f, False), read_tensors, damaged, 200),
    "torch, legacy": (lambda f: make_torch(f, True), read_tensors, damaged, 200),
    "dataset.json": (
        within(images, "dataset.json"), lambda p: read_all(p.parent), damaged_json, 300,
    ),
    "dataset.json, converting": (
        within(images, "dataset.json"), lambda p: collected(p.parent), damaged_json, 150,
    ),
    "png": (within(images, "1.png"), lambda p: read_all(p.parent), damaged, 200),
    "zip": (lambda f: make_zip(f / "a.zip"), read_all, damaged, 300),
    "npy": (make_npy, lambda p: read_all(p.parent), damaged, 300),
    "latents, index": (
        within(make_latents, "latents.json"), lambda p: read_all(p.parent), damaged_json, 250,
    ),
    "latents, shard": (
        within(make_latents, shard_name(0)), lambda p: open_shards(p.parent), damaged_header, 150,
    ),
    "latents, labels": (
        within(make_latents, "labels.safetensors"), lambda p: open_shards(p.parent), FORGED, 150,
    ),
    "csv": (list_file("list.csv", CSV), collected, damaged, 200),
    "jsonl": (list_file("list.jsonl", JSONL), collected, damaged_json, 200),
    "mnist": (mnist, lambda p: open_collection(p.parent), damaged, 150),
    "cifar": (cifar, lambda p: open_collection(p.parent), damaged, 150),
    "generated, settings": (within(make_generated, "settings.json"), generated, damaged_json, 150),
    "generated, conditions": (within(make_generated, "dataset.json"), generated, damaged_json, 150),
    "config": (config, lambda p: load_config(str(p)), damaged_json, 30),
    "run.json": (lambda f: written(f / "run.json", b'{"run": "a1b2c3d4"}'), _run,
                 damaged_json, 150),
    "checkpoint": (make_checkpoint, lambda p: manifest.read(p.parent), damaged_json, 150),
}  # fmt: skip


@pytest.fixture(autouse=True)
def in_time():
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_a_value_error_or_an_os_error(name, tmp_path):
    make, read, damage, times = READERS[name]
    rng = random.Random(name)
    path = make(tmp_path)
    whole = path.read_bytes()
    read(path)
    refused = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(times):
        path.write_bytes(damage(whole, rng))
        try:
            read(path)
        except (ValueError, OSError) as error:
            refused.append(str(error))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert len(refused) > times / 10 and grown < 200 * 2**10, (len(refused), grown)
    assert not [line for line in refused if "\n" in line or len(line) > 2000]
