"""Configs A to F in float64 NumPy, written from the formulas of the paper: the oracle of the tests.

Works on a dict of weights under the names of our state dict and shares no code with the library.
Each function takes the rung, so that the differences stand side by side.
"""

import numpy as np

SIDES = ("enc", "dec")


def silu(x):
    return x / (1 + np.exp(-x))


def rms_normalized(x, axes):
    return x / (np.sqrt((x**2).mean(axis=axes, keepdims=True)) + 1e-4)


def effective(w, rung):
    """The weights that a layer multiplies with: from D on, every row has length 1."""
    if rung < "d":
        return w
    return rms_normalized(w, tuple(range(1, w.ndim))) / np.sqrt(w[0].size)


def layer(p, name, x, rung):
    """Convolution as a sum over its taps, or a product with a matrix; then the bias."""
    w = effective(p[f"{name}.weight"], rung)
    bias = p.get(f"{name}.bias", np.zeros(len(w)))
    if w.ndim == 2:
        return x @ w.T + bias
    size, (height, width) = w.shape[-1], x.shape[-2:]
    padded = np.pad(x, [(0, 0), (0, 0), (size // 2,) * 2, (size // 2,) * 2])
    y = np.zeros((len(x), len(w), height, width))
    for i in range(size):
        for j in range(size):
            y += np.einsum(
                "oc,nchw->nohw", w[..., i, j], padded[..., i : i + height, j : j + width]
            )
    return y + bias[:, None, None]


def norm(p, name, x, rung):
    n, c, h, w = x.shape
    groups = x.reshape(n, min(32, c // 4), -1, h, w)
    if rung >= "c":
        return rms_normalized(groups, (2, 3, 4)).reshape(x.shape)
    groups = groups - groups.mean((2, 3, 4), keepdims=True)
    y = (groups / np.sqrt((groups**2).mean((2, 3, 4), keepdims=True) + 1e-5)).reshape(x.shape)
    return y * p[f"{name}.weight"][:, None, None] + p[f"{name}.bias"][:, None, None]


def resampled(x, kind):
    if kind == "down":
        return (x[..., ::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, ::2] + x[..., 1::2, 1::2]) / 4
    return np.kron(x, np.ones((2, 2))) if kind == "up" else x


def attention(p, x, rung, head_channels):
    n, c, h, w = x.shape
    y = norm(p, "attn_norm", x, rung) if rung < "c" else x
    y = layer(p, "attn_qkv", y, rung)
    result = np.empty((n, c, h * w))
    for head in range(c // head_channels):
        q, k, v = np.empty((3, n, head_channels, h * w))
        for channel in range(head_channels):  # channels are ordered head, channel, {q, k, v}
            first = 3 * (head * head_channels + channel)
            q[:, channel], k[:, channel], v[:, channel] = (
                y[:, first + i].reshape(n, h * w) for i in range(3)
            )
        if rung >= "c":
            q, k, v = (rms_normalized(part, 1) for part in (q, k, v))
        logits = np.swapaxes(q, 1, 2) @ k / np.sqrt(head_channels)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        result[:, head * head_channels : (head + 1) * head_channels] = v @ np.swapaxes(
            weights, 1, 2
        )
    return layer(p, "attn_proj", result.reshape(x.shape), rung)


def block(p, x, emb, rung, side, kind, head_channels):
    """p: weights of one block by their short names; kind: what its name says of resampling."""

    def widened(x):
        return layer(p, "conv_skip", x, rung) if "conv_skip.weight" in p else x

    if rung == "f":
        x = resampled(x, kind)
        if side == "enc":
            x = rms_normalized(widened(x), 1)
        y = layer(p, "conv_res0", silu(x), rung)
        if side == "dec":
            x = widened(x)
    else:
        y = layer(p, "conv_res0", resampled(silu(norm(p, "norm0", x, rung)), kind), rung)
        y = norm(p, "norm1", y, rung)
        x = widened(resampled(x, kind))
    told = layer(p, "emb_linear", emb, rung)[:, :, None, None]
    if rung < "c":
        half = told.shape[1] // 2
        y = silu(y * (1 + told[:, :half]) + told[:, half:])
    else:
        y = silu(y * (1 + told))
    x = x + layer(p, "conv_res1", y, rung)
    return x + attention(p, x, rung, head_channels) if "attn_qkv.weight" in p else x


def embedding(p, c_noise, one_hot, rung):
    if rung < "c":
        half = p["emb_noise.weight"].shape[1] // 2
        angle = np.outer(c_noise, 10000.0 ** (-np.arange(half) / half))
        features = np.concatenate([np.cos(angle), np.sin(angle)], 1)
    else:
        freqs, phases = p["emb_features.freqs"], p["emb_features.phases"]  # 2 pi is in them
        features = np.cos(np.outer(c_noise, freqs) + phases)
        one_hot = one_hot * np.sqrt(one_hot.shape[1])
    emb = layer(p, "emb_noise", features, rung)
    if rung < "f":
        emb = layer(p, "emb_hidden", silu(emb), rung)
    return silu(emb + layer(p, "emb_label", one_hot, rung))


def network(p, x, c_noise, one_hot, rung, head_channels):
    """F_x; ``p`` holds the weights as 'enc.8x8_conv.weight' and so on."""
    emb = embedding(p, c_noise, one_hot, rung)
    if rung >= "c":
        x = np.concatenate([x, np.ones_like(x[:, :1])], 1)
    skips = []
    for side in SIDES:
        for name in dict.fromkeys(key.split(".")[1] for key in p if key.startswith(side)):
            if name.endswith("_conv"):
                x = layer(p, f"{side}.{name}", x, rung)
            else:
                if side == "dec" and "block" in name:
                    x = np.concatenate([x, skips.pop()], 1)
                start = f"{side}.{name}."
                own = {k.removeprefix(start): v for k, v in p.items() if k.startswith(start)}
                x = block(own, x, emb, rung, side, name.rpartition("_")[2], head_channels)
            if side == "enc":
                skips.append(x)
    assert not skips
    return layer(p, "out_conv", x if rung == "f" else silu(norm(p, "out_norm", x, rung)), rung)
