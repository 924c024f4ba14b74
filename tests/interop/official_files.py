"""Writes network files as the official EDM2 code does, to be read back by ours.

While a file is written, stand-ins for its modules ``dnnlib.util`` and ``torch_utils.persistence``
are importable; afterwards they are gone. Networks are real torch modules.
"""

import contextlib
import dataclasses
import pickle
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.interop.edm2_network import read_network
from edm2lite.network.layers import MPConv
from edm2lite.network.unet import UNetConfig

SOURCE = "import os\nos.system('echo source of a module, never executed')\n"
TINY = UNetConfig(
    img_resolution=8, img_channels=2, label_dim=3, model_channels=8, channel_mult=(1, 2),
    num_blocks=1, attn_resolutions=(4,), head_channels=8,
)  # fmt: skip
LATENTS = dataclasses.replace(TINY, img_channels=4)
SMALL = dataclasses.replace(TINY, channel_mult=(1,), attn_resolutions=())
HEAD = b"\x80\x04"  # of a pickle of protocol 4


class EasyDict(dict):
    """A dict whose entries are attributes too."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


EasyDict.__module__ = "dnnlib.util"


def _reconstruct_persistent_obj(meta):
    raise AssertionError("the real one would execute meta.module_src")


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


def reduce_persistent(self):
    meta = EasyDict(type="class", version=6, module_src=SOURCE)
    meta.update(class_name=type(self).__name__, state=self.__dict__)
    return _reconstruct_persistent_obj, (meta,)


def persistent(class_name, base=object, init_kwargs=None, **attributes):
    """An instance of a class of that name that pickles as official objects do."""
    official = type(class_name, (base,), {"__reduce__": reduce_persistent})()
    official._init_args, official._init_kwargs = (), EasyDict(init_kwargs or {})
    for name, value in attributes.items():
        setattr(official, name, value)
    return official


def official_network(net, **init_kwargs):
    """The modules of a :class:`Precond` as official objects that hold its tensors."""
    unet = net.config.backbone
    settings = {
        "img_resolution": unet.img_resolution, "img_channels": unet.img_channels,
        "label_dim": unet.label_dim, "model_channels": unet.model_channels,
        "channel_mult": list(unet.channel_mult), "num_blocks": unet.num_blocks,
        "attn_resolutions": list(unet.attn_resolutions), "channels_per_head": unet.head_channels,
        "use_fp16": net.config.dtype == "float16",
    } | init_kwargs  # fmt: skip
    official = _official_module(net, "Precond", settings)
    official.use_fp16, official.sigma_data = settings["use_fp16"], 0.5
    official.label_dim = unet.label_dim
    return official


def _official_module(module, class_name, settings):
    if isinstance(module, nn.ModuleDict):
        official = nn.ModuleDict()
    else:
        known = settings if class_name in ("Precond", "UNet") else {}
        official = persistent(class_name, nn.Module, dict(known))
    for name, value in module.named_parameters(recurse=False):
        value = value.detach().clone()
        value = value.squeeze() if name.endswith("gain") else value  # scalars there
        official.register_parameter(name, nn.Parameter(value, requires_grad=False))
    for name, value in module.named_buffers(recurse=False):
        official.register_buffer(name, value.clone())
    if class_name == "Block":
        heads = module.num_heads
        official.flavor, official.num_heads = module.flavor, heads
        official.clip_act, official.dropout = 256, 0.0
        official.register_buffer("resample_filter", torch.full((1, 1, 2, 2), 0.25))
    for name, child in module.named_children():
        child_class = "MPConv" if isinstance(child, MPConv) else type(child).__name__
        official.add_module(name, _official_module(child, child_class, settings))
    return official.eval()


def rgb_encoder():
    return persistent("StandardRGBEncoder")


def vae_encoder(**init_kwargs):
    mean, std = np.float32([5.81, 3.25, 0.12, -2.15]), np.float32([4.17, 4.62, 3.71, 3.28])
    scale = np.float32(0.5) / std
    return persistent(
        "StabilityVAEEncoder", object, init_kwargs, vae_name="stabilityai/sd-vae-ft-mse",
        batch_size=8, scale=scale, bias=-mean * scale, _vae=None,
    )  # fmt: skip


def random_net(config=TINY, seed=0, **precond):
    """A network with random gains, so that every weight reaches the output."""
    torch.manual_seed(seed)
    net = Precond(PrecondConfig(backbone=config, dtype="float32", **precond)).eval()
    for name, value in net.named_parameters():
        if name.endswith("gain"):
            nn.init.normal_(value)
    return net.requires_grad_(False)


@contextlib.contextmanager
def official_modules():
    """The modules that official files name, importable within the block only."""
    modules = {name: types.ModuleType(name) for name in ("dnnlib", "dnnlib.util", "torch_utils")}
    modules["torch_utils.persistence"] = types.ModuleType("torch_utils.persistence")
    modules["dnnlib.util"].EasyDict = EasyDict
    modules["torch_utils.persistence"]._reconstruct_persistent_obj = _reconstruct_persistent_obj
    assert not modules.keys() & sys.modules.keys()
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]


def official_bytes(net=None, *, encoder=None, protocol=4, network=None, **more):
    """The file of a network, as bytes."""
    content = EasyDict(ema=official_network(net) if network is None else network)
    content.update(
        encoder=encoder or rgb_encoder(),
        dataset_kwargs=EasyDict(class_name="training.dataset.ImageFolderDataset", path="/d.zip"),
        loss_fn=persistent("EDM2Loss", P_mean=-0.4, P_std=np.float32(1.0), sigma_data=0.5),
        **more,
    )
    with official_modules():
        return pickle.dumps(content, protocol)


class Calls:
    """Pickles as the call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def text(value):
    """The instruction for a short text."""
    return b"\x8c" + bytes([len(value)]) + value.encode()


def refused(tmp_path, content, message):
    """A file of this content is refused in one line, and did nothing."""
    path = tmp_path / "net-0001048-0.050.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_network(path)
    assert str(caught.value).startswith(f"{path} ") and "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists(), "the file ran a command"


def write(path, *args, **options):
    """A network file; its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(official_bytes(*args, **options))
    return path
