"""DINOv2 features as FD-DINOv2 takes them: its resizing of images, and the vision transformers.

torch-fidelity has torch.hub fetch the network's code together with the weights, and run it. The
network is small enough to be written down, so it is built here from its weights alone.
Architecture: arXiv 2304.07193 (a ViT with LayerScale, patches of 14 pixels).

torch-fidelity also resizes images bilinearly without antialiasing. FD-DINOv2 (arXiv 2306.04675) is
defined on images that PIL resizes bicubically, which has antialiasing. That is done here too.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edm2lite.interop.torch_files import read_tensors

_HOST = "https://dl.fbaipublicfiles.com/dinov2"
URLS = {
    f"dinov2-vit-{size}-14": f"{_HOST}/dinov2_vit{size}14/dinov2_vit{size}14_pretrain.pth"
    for size in "sbl"
}
PREPROCESSING = "bicubic-antialiased-224"
"""What the statistics of DINOv2 features record as their ``preprocessing``."""
_SIDE = 224
_UNIT = 2.0**22  # PIL stores weights as multiples of 1 / _UNIT
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, with values in 0..1
_HEAD = 64  # channels of an attention head, in every size


def network_input(images: Tensor) -> Tensor:
    """Images as the networks see them in FD-DINOv2, [N, 3, 224, 224] float32.

    Images are resized bicubically with antialiasing, first along rows and then along columns, and
    are rounded to 0..255 after each, as PIL does it. (Pillow 13 takes columns first in some images
    that are taller than wide.) Then ``(v / 255 - mean) / std`` with the mean and the standard
    deviation of ImageNet.

    Args:
        images: uint8 [N, 3, H, W].

    Example:
        >>> white = torch.full((1, 3, 32, 48), 255, dtype=torch.uint8)
        >>> [round(v, 3) for v in network_input(white)[0, :, 0, 0].tolist()]
        [2.249, 2.429, 2.64]
    """
    rows, columns = (
        _resizing(size).to(images.device) for size in (images.shape[3], images.shape[2])
    )
    x = _rounded(images.double() @ rows.T)
    x = _rounded(columns @ x).float()
    mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in (_MEAN, _STD))
    return x.div_(255).sub_(mean).div_(std)


@functools.lru_cache(maxsize=16)
def _resizing(size: int) -> Tensor:
    """[224, size] float64, the weights of PIL's bicubic filter: sums with bytes are exact."""
    scale = size / _SIDE
    center = (torch.arange(_SIDE, dtype=torch.float64)[:, None] + 0.5) * scale
    x = (torch.arange(size, dtype=torch.float64) + 0.5 - center).abs() / max(scale, 1.0)
    near = 1.5 * x**3 - 2.5 * x**2 + 1  # Keys' cubic with a = -1/2
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    weights /= weights.sum(dim=1, keepdim=True)
    return (weights * _UNIT).round_() / _UNIT


def _rounded(x: Tensor) -> Tensor:
    return x.add_(0.5).floor_().clamp_(0, 255)


class DINOv2Features(nn.Module):
    """uint8 [N, 3, H, W] -> [N, F]: features of a network, of images as FD-DINOv2 resizes them.

    Args:
        net: Network, float32 [N, 3, 224, 224] -> [N, F].

    Example:
        >>> images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
        >>> DINOv2Features(VisionTransformer(dim=64, depth=1))(images).shape
        torch.Size([2, 64])
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [N, 3, H, W] -> [N, F]."""
        features: Tensor = self.net(network_input(images))
        return features


class _Scale(nn.Module):
    """LayerScale: each channel times a learned factor."""

    def __init__(self, dim: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class _Attention(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, D] -> [N, T, D]."""
        qkv = self.qkv(x).unflatten(2, (3, -1, _HEAD)).permute(2, 0, 3, 1, 4)
        y: Tensor = self.proj(F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2))
        return y


class _MLP(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y


class _Block(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn, self.mlp = _Attention(dim), _MLP(dim)
        self.ls1, self.ls2 = _Scale(dim), _Scale(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        y: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return y


class VisionTransformer(nn.Module):
    """[N, 3, 14 h, 14 w] -> [N, dim], the class token after the last norm.

    Args:
        dim: Number of channels, a multiple of 64.
        depth: Number of blocks.
        side: Number of patches along a side of the position embedding.

    Example:
        >>> VisionTransformer(dim=64, depth=1)(torch.zeros(2, 3, 28, 42)).shape
        torch.Size([2, 64])
    """

    def __init__(self, dim: int, depth: int, side: int = 37):
        super().__init__()
        self.side = side
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side**2, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))  # of training; in the released files
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, dim, 14, stride=14)})
        self.blocks = nn.ModuleList(_Block(dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 14 h, 14 w] -> [N, dim]."""
        x = self.patch_embed["proj"](x)
        positions = self._positions(x.shape[2], x.shape[3])
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
        x = x + positions
        for block in self.blocks:
            x = block(x)
        token: Tensor = self.norm(x)[:, 0]
        return token

    def _positions(self, height: int, width: int) -> Tensor:
        """[1, 1 + height width, D], the learned grid resized as the released networks do it."""
        first, grid = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        if (height, width) == (self.side, self.side):
            return self.pos_embed
        grid = torch.unflatten(grid.transpose(1, 2), 2, (self.side, self.side))
        # their offset of 0.1 keeps rounding from losing a row; it also shifts where values are read
        scale = [(size + 0.1) / self.side for size in (height, width)]
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
        return torch.cat([first, grid.flatten(2).transpose(1, 2)], 1)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> VisionTransformer:
        """A network of the size that the tensors have.

        Raises:
            RuntimeError: If the tensors are not those of a DINOv2 network.
        """
        if "pos_embed" not in tensors:
            raise RuntimeError("pos_embed is missing")
        dim, tokens = tensors["pos_embed"].shape[2], tensors["pos_embed"].shape[1]
        depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
        net = cls(dim, depth, int((tokens - 1) ** 0.5))
        net.load_state_dict(dict(tensors))
        return net


def extractor(name: str, weights: Path | None) -> DINOv2Features:
    """The extractor around a network of this file's weights, or of downloaded ones.

    Args:
        name: Key of :data:`URLS`.
        weights: File with the weights, or None to download them.

    Raises:
        RuntimeError: If the weights do not fit.
        ValueError: If the file holds anything but tensors.
        OSError: If they cannot be downloaded.
    """
    if weights is None:
        tensors = torch.hub.load_state_dict_from_url(
            URLS[name], map_location="cpu", weights_only=True, progress=False
        )
    else:
        tensors = read_tensors(weights)
    return DINOv2Features(VisionTransformer.from_tensors(tensors)).requires_grad_(False)
