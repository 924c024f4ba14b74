"""The EDM2 network in float64 NumPy, written from the paper's equations: the oracle of the tests.

Works on a dict of weights under the names of our state dict and shares no code with the library.
"""

import numpy as np
from scipy.signal import correlate

EPS = 1e-4


def normalize(x, axes):
    rms = np.sqrt(np.mean(x**2, axis=axes, keepdims=True))
    return x / (EPS + rms)


def unit_weight(w):
    fan_in = w[0].size
    return normalize(w, tuple(range(1, w.ndim))) / np.sqrt(fan_in)


def conv(x, w, gain=1.0):
    w = unit_weight(w) * gain
    if w.ndim == 2:
        return x @ w.T
    pad = w.shape[-1] // 2
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    return np.stack([[correlate(image, kernel, "valid")[0] for kernel in w] for image in x])


def silu(x):
    return x / (1 + np.exp(-x)) / 0.596


def mp_sum(a, b, t):
    return ((1 - t) * a + t * b) / np.sqrt((1 - t) ** 2 + t**2)


def mp_cat(a, b, t=0.5):
    na, nb = a.shape[1], b.shape[1]
    c = np.sqrt((na + nb) / ((1 - t) ** 2 + t**2))
    return np.concatenate([a * c * (1 - t) / np.sqrt(na), b * c * t / np.sqrt(nb)], axis=1)


def attention(x, qkv_weight, proj_weight, head_channels):
    n, c, h, w = x.shape
    heads = c // head_channels
    qkv = conv(x, qkv_weight).reshape(n, heads, head_channels, 3, h * w)
    q, k, v = np.moveaxis(normalize(qkv, (2,)), 3, 0)
    logits = np.einsum("nhcq,nhck->nhqk", q, k) / np.sqrt(head_channels)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    y = np.einsum("nhqk,nhck->nhcq", weights, v).reshape(n, c, h, w)
    return mp_sum(x, conv(y, proj_weight), 0.3)


def block(p, x, emb, flavor, resample, head_channels):
    """p: weights of one block by their short names."""
    if resample == "down":
        x = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    if resample == "up":
        x = x.repeat(2, axis=-2).repeat(2, axis=-1)
    if flavor == "enc":
        if "conv_skip" in p:
            x = conv(x, p["conv_skip"])
        x = normalize(x, (1,))
    y = conv(silu(x), p["conv_res0"])
    scale = 1 + conv(emb, p["emb_linear"], p["emb_gain"])
    y = conv(silu(y * scale[:, :, None, None]), p["conv_res1"])
    if flavor == "dec" and "conv_skip" in p:
        x = conv(x, p["conv_skip"])
    x = mp_sum(x, y, 0.3)
    if "attn_qkv" in p:
        x = attention(x, p["attn_qkv"], p["attn_proj"], head_channels)
    return np.clip(x, -256, 256)


def fourier(x, freqs, phases):
    return np.sqrt(2) * np.cos(np.outer(x, freqs) + phases)


def unet(state, x, c_noise, one_hot, head_channels, image=None):
    """F_x; ``state`` holds the weights as 'enc.8x8_conv.weight' and so on.

    A condition image joins the input as further channels, before the channel of ones.
    """
    emb = conv(
        fourier(c_noise, state["emb_fourier.freqs"], state["emb_fourier.phases"]),
        state["emb_noise.weight"],
    )
    if one_hot is not None:
        label = conv(one_hot * np.sqrt(one_hot.shape[1]), state["emb_label.weight"])
        emb = mp_sum(emb, label, 0.5)
    emb = silu(emb)
    ones = np.ones_like(x[:, :1])
    x = np.concatenate([x, ones] if image is None else [x, image, ones], axis=1)
    skips = []
    for side in ("enc", "dec"):
        names = dict.fromkeys(k.split(".")[1] for k in state if k.startswith(side + "."))
        for name in names:
            prefix = f"{side}.{name}."
            p = {
                k.removeprefix(prefix).removesuffix(".weight"): v
                for k, v in state.items()
                if k.startswith(prefix)
            }
            if "weight" in p:
                x = conv(x, p["weight"])
            else:
                if side == "dec" and "block" in name:
                    x = mp_cat(x, skips.pop())
                resample = name.rsplit("_", 1)[1]
                x = block(p, x, emb, side, resample, head_channels)
            if side == "enc":
                skips.append(x)
    assert not skips
    return conv(x, state["out_conv.weight"], state["out_gain"])
