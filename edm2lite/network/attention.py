"""Cosine attention: magnitude-preserving self-attention over the pixels of features.

Queries, keys and values have RMS 1 per head and pixel, so that logits are bounded and need no
learned scale (arXiv 2312.02696, Eq. 30 and Fig. 22).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from edm2lite.network.kernels.dispatch import own_kernels_allowed
from edm2lite.network.kernels.unit_rms import unit_rms
from edm2lite.network.layers import MPConv


class QKVConv(MPConv):
    """Queries, keys and values of an attention: a 1x1 convolution from C to 3*C channels.

    The rows of the stored weight interleave as (heads, C_head, 3), as in the released networks; the
    channels of the output come in the order (3, heads, C_head), which no later pass over features
    has to rearrange.

    Args:
        channels: Number of channels C.
        num_heads: Number of heads, a divisor of C.

    Example:
        >>> qkv = QKVConv(64, num_heads=2)(torch.randn(1, 64, 8, 8))
        >>> cosine_attention(qkv, num_heads=2).shape
        torch.Size([1, 64, 8, 8])
    """

    def __init__(self, channels: int, num_heads: int):
        super().__init__(channels, 3 * channels, (1, 1))
        self.num_heads = num_heads

    def normalized_weight(self, dtype: torch.dtype, gain: float | Tensor = 1.0) -> Tensor:
        """The weight that ``forward`` applies, its rows in the order (3, heads, C_head)."""
        rows = super().normalized_weight(dtype, gain).unflatten(0, (self.num_heads, -1, 3))
        ordered: Tensor = rows.movedim(2, 0).flatten(0, 2)
        return ordered


def cosine_attention(qkv: Tensor, num_heads: int) -> Tensor:
    """Self-attention over pixels with q, k and v of RMS 1 per head.

    Logits are ``q . k / sqrt(C_head)``, bounded by sqrt(C_head) in absolute value.

    Args:
        qkv: [N, 3*C, H, W], channels in the order (3, heads, C_head).
        num_heads: Number of heads, a divisor of C.

    Returns:
        [N, C, H, W].

    Example:
        >>> qkv = torch.ones(1, 3 * 8, 2, 2)  # equal pixels: each attends to all alike
        >>> cosine_attention(qkv, num_heads=2)[0, 0]
        tensor([[0.9999, 0.9999],
                [0.9999, 0.9999]])
    """
    n, c3, h, w = qkv.shape
    parts = qkv.permute(0, 2, 3, 1).reshape(n, h * w, 3, num_heads, c3 // (3 * num_heads))
    q, k, v = unit_rms(parts, dim=4).permute(2, 0, 3, 1, 4)  # each [N, heads, HW, C_head]
    return attend(q, k, v).transpose(1, 2).reshape(n, h, w, c3 // 3).permute(0, 3, 1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """``softmax(q k^T / sqrt(C_head)) v`` of every head.

    Args:
        q: [N, heads, HW, C_head].
        k: [N, heads, T, C_head].
        v: [N, heads, T, C_head].
        mask: [N, 1, 1, T], True at keys to attend to, one at least; None for all.

    Returns:
        [N, heads, HW, C_head].

    Example:
        >>> x = torch.zeros(1, 2, 4, 8)
        >>> attend(x, x, x + 3).unique()
        tensor([3.])
    """
    # Fused kernels have neither forward-mode nor second derivatives. Where these may be asked for,
    # and a CPU loses little, the products are written out.
    on_cpu = q.device.type in ("cpu", "meta") and torch.is_grad_enabled()
    if not torch.compiler.is_compiling() and (on_cpu or not own_kernels_allowed()):
        logits = q @ k.mT / math.sqrt(q.shape[-1])
        if mask is not None:
            logits = logits.masked_fill(~mask, -math.inf)
        return logits.softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
