"""A corpus of hostile files, and the commands that read files of their kinds.

A file that is executed makes the folder ``executed``. Files are small; what they unpack to, or ask
for, is not.
"""

import gzip
import io
import json
import os
import pickle
import socket
import struct
import tarfile
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.ema import PowerFunctionEMA
from edm2lite.metrics.digits_classifier import classifier
from edm2lite.metrics.feature_stats import FeatureStats
from edm2lite.network.backbone import backbone_from_dict
from edm2lite.network.unet import UNetConfig
from edm2lite.tensorfile import load_tensors, save_tensors

UNET = UNetConfig(
    img_resolution=8, img_channels=1, model_channels=8, channel_mult=(1,), num_blocks=1,
    attn_resolutions=(), head_channels=8,
).to_dict()  # fmt: skip
DEEP = "[" * 100_000
COMMANDS = {
    "model": (
        "edm2lite generate {} --seeds 0 --steps 1 --out {out}/images",
        "edm2lite evaluate {} --metrics loss --data digits --images 2",
        "edm2lite export {} --license mit --out {out}/exported",
        "edm2lite magnitudes {}",
    ),
    "far model": ("edm2lite generate {} --seeds 0 --steps 1 --out {out}/images",),
    "snapshots": (
        "edm2lite snapshots {}",
        "reconstruct_ema {} --sigma-rel 0.1 --out {out}/ema",
        "sweep_ema {} --sigma-rel 0.1 --metric loss --data digits --images 2 --out {out}/sweep",
    ),
    "data": (
        "edm2lite dataset info {}",
        "edm2lite dataset verify {}",
        "edm2lite dataset convert {} {out}/data.zip",
        "training digits --set data.source={} --out {out}/run --dry-run",
    ),
    "list": ("edm2lite dataset convert {} {out}/data.zip",),
    "statistics": (
        "edm2lite evaluate digits --ref {} --weights {weights} --images 2",
        "edm2lite evaluate digits --ref {} --images 2",
    ),
    "other statistics": (
        "edm2lite evaluate digits --ref {} --images 2",
        "edm2lite evaluate stats {} --out {out}/stats.safetensors",
    ),
    "weights": (
        "edm2lite evaluate stats digits --extractor inception-v3-compat --weights {} --out {out}/s",
        "edm2lite evaluate stats digits --extractor digits --weights {} --out {out}/s",
    ),
    "network": ("edm2lite import {} --out {out}/n.safetensors",),
    "averages": (
        "edm2lite import {} --sigma-rel 0.1 --update-every 1 --out {out}/run",
    ),
    "adapter": (
        "edm2lite adapters info {}",
        "edm2lite adapters factorize {} --rank 1 --out {out}/a",
    ),
    "config": ("training {} --out {out}/run --dry-run", "edm2lite plot-objective {} --out {out}/p"),
}  # fmt: skip


class Runs:
    """A pickle that makes a folder when it is executed."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def corpus(folder):
    """Make the files; yields name, kind and path of each."""
    canary = folder / "executed"
    for kind, make in (
        ("model", _models), ("far model", _far_models), ("snapshots", _snapshots),
        ("data", _images), ("data", _tables),
        ("data", _archives), ("list", _lists), ("statistics", _statistics),
        ("other statistics", _other_statistics), ("weights", _weights), ("network", _networks),
        ("averages", _averages), ("adapter", _adapters), ("config", _configs),
    ):  # fmt: skip
        place = folder / make.__name__.strip("_")
        place.mkdir()
        for path in make(place, canary):
            yield kind, path


def _models(folder, canary):
    hub = folder / "hub"
    hub.mkdir()
    (hub / "hubconf.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    named = {"repo_or_dir": str(hub), "model": "x", "source": "local"}
    tensors, files = {"a": torch.ones(1)}, {
        "hub": {"kind": "torch.hub:load", **named},
        "process": {"kind": "subprocess:Popen", "args": ["mkdir", str(canary)]},
        "blocks": {**UNET, "num_blocks": 10**6},
        "channels": {**UNET, "model_channels": 65536, "channel_mult": [1024] * 16},
        "heads": {**UNET, "head_channels": 0},
        "list": {**UNET, "channel_mult": [[1]]},
        "classes": {**UNET, "label_dim": 2**31},
        "text": {**UNET, "clip_act": "x"},
    }  # fmt: skip
    for name, backbone in files.items():
        yield _model(folder / f"{name}.safetensors", tensors, json.dumps({"backbone": backbone}))
    for name, more in {"dtype": {"dtype": "save"}, "fourier": {"logvar_channels": 2**62}}.items():
        text = json.dumps({"backbone": UNET, **more})
        yield _model(folder / f"{name}.safetensors", tensors, text)
    for name, text in {"deep": DEEP, "null": "null", "nan": '{"sigma_data": NaN}'}.items():
        yield _model(folder / f"{name}.safetensors", tensors, text)
    from edm2lite.diffusion.precond import Precond, PrecondConfig

    net = Precond(
        PrecondConfig(
            backbone=UNetConfig(
                **{k: tuple(v) if isinstance(v, list) else v for k, v in UNET.items()}
            )
        )
    )
    for name, encoder in {
        "encoder-hub": {"kind": "torch.hub:load", **named},
        "encoder-system": {"kind": "os:system", "command": f"mkdir {canary}"},
        "encoder-list": [1],
        "encoder-scale": {"kind": "pixels", "scale": 0},
    }.items():
        yield net.save(folder / f"{name}.safetensors", {"encoder": json.dumps(encoder)})
    yield net.save(folder / "inputs.safetensors", {"inputs": DEEP, "nimg": "x", "sigma_rel": "y"})
    for suffix in ("pkl", "safetensors"):
        (folder / f"pickle.{suffix}").write_bytes(pickle.dumps(Runs(canary)))
        yield folder / f"pickle.{suffix}"
    torch.save({"a": Runs(canary)}, folder / "torch.safetensors")
    yield folder / "torch.safetensors"
    yield _header(folder / "lists.safetensors", b'{"a":[' + b"[]," * 2**18 + b"[]]}")
    yield _header(folder / "promise.safetensors", b"{}", length=2**63)
    os.mkfifo(folder / "pipe.safetensors")
    yield folder / "pipe.safetensors"


def _far_models(folder, canary):
    """Models with an autoencoder of a name that only the network knows."""
    latents = {
        "kind": "latents", "mean": [0.0], "std": [1.0], "input_range": "0..1",
        "vae": "somebody-nobody-knows/vae",
    }  # fmt: skip
    net = Precond(PrecondConfig(backbone=backbone_from_dict(UNET)))
    yield net.save(folder / "far.safetensors", {"encoder": json.dumps(latents)})


def _model(path, tensors, text):
    return save_tensors(path, tensors, {"format": "edm2lite.model/1", "model": text})


def _header(path, raw, length=None):
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw)
    return path


def _snapshots(folder, canary):
    for name in ("link", "pipe", "folder", "socket", "pickle", "history", "previous", "nimg"):
        run = folder / name
        ema = PowerFunctionEMA({"w": torch.ones(3)}, [0.05, 0.1], run="a1")
        for nimg in (64, 128):
            ema.update(nimg)
            *_, last = ema.save_snapshots(run)
        odd = run / "z.safetensors"
        tensors, metadata = load_tensors(last)
        forged = {
            "history": DEEP, "previous": '["x"]', "nimg": str(2**62),
        }  # fmt: skip
        if name == "link":
            odd.symlink_to(run / "nowhere")
        elif name == "pipe":
            os.mkfifo(odd)
        elif name == "folder":
            odd.mkdir()
        elif name == "socket":
            here = os.getcwd()
            os.chdir(run)  # the path of a socket must be short
            try:
                socket.socket(socket.AF_UNIX).bind(odd.name)
            finally:
                os.chdir(here)
        elif name == "pickle":
            odd.write_bytes(pickle.dumps(Runs(canary)))
        else:
            kept = {k: v for k, v in metadata.items() if "digest" not in k}
            save_tensors(odd, tensors, {**kept, name: forged[name]})
        yield run


def _png(width=8, height=8, depth=8, color=0):
    """A PNG of zeros; of color 0 (gray), 2 (RGB), 4 (gray with alpha) or 6 (RGB with alpha)."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[color]
    rows = min(height * (1 + width * channels * depth // 8), 2**20)
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(rows))),
        (b"IEND", b""),
    ]
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _images(folder, canary):
    eps = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(%pipe%mkdir {canary}) (r) file\n"
    for name, data in {
        "bomb.png": _png(30_000, 20_000), "eps.png": eps.encode(), "rgb16.png": _png(1, 1, 16, 2),
        "la16.png": _png(1, 1, 16, 4), "rgba16.png": _png(1, 1, 16, 6), "cut.png": _png()[:40],
        "huge.npy": _npy_header((2**40, 2**40, 2**40)), "big.npy": _npy_header((8, 10**5, 10**5)),
        "object.npy": _objects(canary), "npz.npy": _zip({"mu.npy": b""}),
        "deep.npy": b"\x93NUMPY\x01\x00\x40\x1f" + b"(" * 8000,
    }.items():  # fmt: skip
        place = folder / name.replace(".", "-")
        place.mkdir()
        (place / name).write_bytes(data)
        yield place
    for name in ("pipe", "loop"):
        place = folder / name
        place.mkdir()
        (place / "0.png").write_bytes(_png())
        os.mkfifo(place / "1.png") if name == "pipe" else (place / "in").symlink_to(place)
        yield place


def _npy_header(shape):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue() + bytes(64)


def _objects(canary):
    buffer = io.BytesIO()
    np.save(buffer, np.array([[[Runs(canary)]]], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def _zip(files, method=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def _tables(folder, canary):
    for name, text in {
        "label": '{"labels": [["0.png", 1' + "0" * 30 + "]]}",
        "digits": '{"labels": [["0.png", 1' + "0" * 10_000 + "]]}",
        "infinite": '{"labels": [["0.png", 1]], "label_dim": Infinity}',
        "classes": '{"labels": [["0.png", 1]], "label_dim": 1000000000000}',
        "index": '{"labels": [["0.png", 4611686018427387904]]}',
        "sizes": '{"labels": null, "sizes": [["0.png", 9223372036854775807, 1]]}',
        "deep": '{"labels": ' + DEEP,
        "list": "[1]",
        "nested": '{"labels": [["0.png", ' + "[" * 900 + "]" * 900 + "]]}",
        "pairs": '{"conditions": {"image": [["0.png", "../../../etc/passwd"]]}}',
        "latin": "\xff\xfe",
    }.items():
        place = folder / name
        place.mkdir()
        (place / "0.png").write_bytes(_png())
        (place / "dataset.json").write_text(text, encoding="latin1")
        yield place
    for name, text in {
        "index-deep": DEEP,
        "index-list": "[]",
        "index-null": '{"format": null}',
    }.items():
        place = folder / name
        place.mkdir()
        (place / "latents.json").write_text(text)
        yield place


def _archives(folder, canary):
    bombs = {"bomb": bytes(300 * 2**20), "table": bytes(40 * 2**20)}
    for name, zeros in bombs.items():
        entry = "dataset.json" if name == "table" else "1.png"
        (folder / f"{name}.zip").write_bytes(_zip({"0.png": _png(), entry: zeros}))
        yield folder / f"{name}.zip"
    lies = _zip({"0.png": bytes(40 * 2**20)})
    at = lies.rindex(b"PK\x01\x02") + 24  # the size, in the directory
    (folder / "lies.zip").write_bytes(lies[:at] + struct.pack("<I", 100) + lies[at + 4 :])
    yield folder / "lies.zip"
    for name, data in {
        "lzma": _zip({"0.png": _png()}, zipfile.ZIP_LZMA),
        "above": _zip({"../0.png": _png()}), "absolute": _zip({"/0.png": _png()}),
        "cut": _zip({"0.png": _png(), "1.png": _png()})[:-30],
    }.items():  # fmt: skip
        (folder / f"{name}.zip").write_bytes(data)
        yield folder / f"{name}.zip"
    with warnings.catch_warnings(), zipfile.ZipFile(folder / "twice.zip", "w") as archive:
        warnings.simplefilter("ignore")
        for _ in range(2):
            archive.writestr("0.png", _png())
    yield folder / "twice.zip"


def _lists(folder, canary):
    (folder / "0.png").write_bytes(_png())
    os.mkfifo(folder / "pipe.png")
    for name, text in {
        "devices.csv": "path\n/dev/zero\n", "pipe.csv": "path\npipe.png\n",
        "deep.jsonl": '{"path": ' + DEEP, "number.jsonl": '{"path": 1}\n[1]\n',
        "field.csv": "path\n" + "x" * 200_000 + "\n",
    }.items():  # fmt: skip
        (folder / name).write_text(text)
        yield folder / name
    for name in ("mnist", "cifar"):
        (folder / name).mkdir()
    header = bytes([0, 0, 8, 3]) + struct.pack(">III", 2**31, 2**10, 2**10)
    packed = gzip.compress(header + bytes(300 * 2**20), 1)
    (folder / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(packed)
    yield folder / "mnist"
    (folder / "cifar" / "data_batch_1").write_bytes(pickle.dumps(Runs(canary)))
    yield folder / "cifar"
    member = tarfile.TarInfo("data_batch_1")
    member.size = 2**40
    (folder / "cifar.tar.gz").write_bytes(gzip.compress(member.tobuf() + bytes(2**20)))
    yield folder / "cifar.tar.gz"


def _statistics(folder, canary):
    good = FeatureStats(9, np.zeros(64), np.eye(64), "digits", "", "", "made up", (1, 8, 8))
    (folder / "evilmod.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    negative = np.eye(64)
    negative[0, 0] = -1
    for name, changes in {
        "import": {"extractor": "evilmod:f"}, "remove": {"extractor": "os:remove"},
        "tree": {"extractor": "shutil:rmtree"}, "weights": {"weights": "/etc/passwd"},
        "negative": {"cov": negative}, "nan": {"cov": np.full((64, 64), np.nan)},
        "shape": {"cov": np.eye(3)}, "scalar": {"mean": np.zeros(())},
        "extractor": {"extractor": "nobody-knows"},
    }.items():  # fmt: skip
        yield FeatureStats(**{**vars(good), **changes}).save(folder / f"{name}.safetensors")
    tensors, metadata = load_tensors(good.save(folder / "x.safetensors"))
    kept = {k: v for k, v in metadata.items() if "digest" not in k}
    for key in ("count", "image_shape"):
        yield save_tensors(folder / f"{key}.safetensors", tensors, {**kept, key: "9" * 5000})


def _other_statistics(folder, canary):
    def npz(name, mean, cov, cut=None):
        np.savez_compressed(folder / name, mu=mean, sigma=cov)
        if cut:
            (folder / name).write_bytes((folder / name).read_bytes()[:cut])
        return folder / name

    yield npz("cut.npz", np.zeros(2048), np.eye(2048), 3000)
    yield npz("nan.npz", np.full(2048, np.nan), np.eye(2048))
    yield npz("negative.npz", np.zeros(2048), -np.eye(2048))
    yield npz("shape.npz", np.zeros(2048), np.eye(7))
    yield npz("scalar.npz", np.zeros(()), np.eye(7))
    yield npz("objects.npz", np.array([Runs(canary)], dtype=object), np.eye(2))
    (folder / "bomb.npz").write_bytes(
        _zip({"mu.npy": _npy_header((2**28,)) + bytes(20 * 2**20), "sigma.npy": b""})
    )
    yield folder / "bomb.npz"
    for name, value in {
        "runs.pkl": Runs(canary), "list.pkl": [1], "inner.pkl": {"fid": {"mu": Runs(canary)}},
    }.items():  # fmt: skip
        (folder / name).write_bytes(pickle.dumps(value))
        yield folder / name


def _weights(folder, canary):
    for name in ("runs.pth", "runs.safetensors"):
        torch.save({"w": torch.ones(1), "x": Runs(canary)}, folder / name)
        yield folder / name
    (folder / "legacy.pth").write_bytes(pickle.dumps({"w": Runs(canary)}))
    yield folder / "legacy.pth"
    yield _header(folder / "deep.safetensors", b'{"a":' + DEEP.encode())
    save_tensors(folder / "other.safetensors", {"w": torch.ones(3)}, {})
    yield folder / "other.safetensors"


def _networks(folder, canary):
    loops = pickle.dumps([[]] * 9, 4)
    for name, data in {
        "runs-0000064-0.100.pkl": pickle.dumps({"ema": Runs(canary)}),
        "memo.pkl": b"\x80\x04Nr\xff\xff\xff\xff.", "long.pkl": b"\x80\x04" + b"}" * 2_000_000,
        "lists.pkl": loops, "cut.pkl": loops[:9],
    }.items():  # fmt: skip
        (folder / name).write_bytes(data)
        yield folder / name


def _averages(folder, canary):
    for name in ("runs", "cut", "list"):
        place = folder / name
        place.mkdir()
        state = {"initted": torch.tensor(True), "step": torch.tensor(10)}
        more = {"ema_model.w": Runs(canary) if name == "runs" else torch.ones(3)}
        torch.save([1] if name == "list" else {**state, **more}, place / "0.10.pt")
        if name == "cut":
            (place / "0.10.pt").write_bytes((place / "0.10.pt").read_bytes()[:600])
        yield place


def _adapters(folder, canary):
    runs, one = Runs(canary), torch.ones(2, 2)
    for name, content in {
        "tokens.pt": {"string_to_param": {"*": runs}}, "net.pt": {8: (runs, runs)},
        "list.pt": [1], "deep.pt": {8: [[[[one]]]]},
        "lora.pt": {"lora_unet_x.lora_up.weight": runs},
    }.items():  # fmt: skip
        torch.save(content, folder / name)
        yield folder / name
    (folder / "cut.pt").write_bytes((folder / "list.pt").read_bytes()[:300])
    yield folder / "cut.pt"
    factors = {"x.down": one, "x.up": one}
    lora = '{"kind": "lora", "base": "", "base_identity": ""}'
    for name, tensors, described in (
        ("deep", factors, DEEP),
        ("null", factors, "null"),
        ("scales", factors, '{"kind": "lora", "base": "", "base_identity": "", "scales": [1]}'),
        ("half", {"x.down": one}, lora),
        ("nan", {**factors, "x.up": one * torch.nan}, lora),
        ("rank", {**factors, "x.up": one[:, :1]}, lora),
    ):
        metadata = {"format": "edm2lite.adapter/1", "adapter": described}
        yield save_tensors(folder / f"{name}.safetensors", tensors, metadata)
    peft = folder / "peft"
    peft.mkdir()
    keys = ("base_model.model.x.lora_A.weight", "base_model.model.x.lora_B.weight")
    save_tensors(peft / "adapter_model.safetensors", dict.fromkeys(keys, one), {})
    (peft / "adapter_config.json").write_text(DEEP)
    yield peft
    os.mkfifo(folder / "pipe.pt")
    yield folder / "pipe.pt"


def _configs(folder, canary):
    names = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))
    for name, text in {
        "bomb": f"a0: &a0 [x]\n{names}\n", "deep": DEEP, "twice": "seed: 1\nseed: 2\n",
        "object": f"seed: !!python/object/apply:os.mkdir [{canary}]\n",
        "number": "seed: 99999999999999999999999999\n", "empty": "", "null": "net: null\n",
    }.items():  # fmt: skip
        (folder / f"{name}.yaml").write_text(text)
        yield folder / f"{name}.yaml"


def words(command, path, out, weights):
    """Program and arguments of a command."""
    program, *arguments = command.split()
    filled = [w.format(path, out=out, weights=weights) for w in arguments]
    return program, filled


def weights_file(folder):
    """A weights file that a hostile reference must not have removed."""
    path = Path(folder) / "classifier.safetensors"
    return save_tensors(path, classifier().state_dict(), {})
