"""Conversions without torch give the bits that torch gives, and the command does without it."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from edm2lite.ema import PowerFunctionEMA, casts, reconstruct
from edm2lite.tensorfile import load_tensors

TORCH = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


@pytest.fixture(params=[True, False], ids=["with torch", "without"])
def loaded(request, monkeypatch):
    """Whether conversions see that torch is loaded."""
    if not request.param:
        monkeypatch.setattr(casts, "sys", type("without torch", (), {"modules": {}}))


def stored(values, kind):
    """NumPy storage of a float32 tensor in a type, rounded by torch."""
    tensor = torch.from_numpy(values).to(TORCH[kind])
    return (tensor.view(torch.uint16) if kind == "BF16" else tensor).numpy()


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_every_half_precision_number_widens_to_the_bits_of_torch(loaded, kind):
    bits = np.arange(2**16, dtype=np.uint32).astype(np.uint16)
    for chosen in (bits, bits[(bits & 0x7F80) != 0x7F80]):  # with and without infinities and NaN
        half = torch.from_numpy(chosen.copy()).view(TORCH[kind])
        out = np.empty(len(chosen), np.float32)
        casts.widen(out, chosen.view(casts.STORAGE[kind]), kind)
        known = ~torch.isnan(half).numpy()
        assert np.array_equal(out.view(np.uint32)[known], half.float().view(torch.uint32)[known])
        assert np.isnan(out[~known]).all()


@pytest.mark.parametrize("kind", list(TORCH))
@pytest.mark.parametrize("limit", [60_000, np.inf])
def test_numbers_of_all_sizes_round_to_the_bits_of_torch(loaded, kind, limit):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**32, 400_000).astype(np.uint32).view(np.float32)
    halves = np.arange(2**16, dtype=np.uint32).astype(np.uint16).view(np.float16)
    near = np.float32([1, 1 + 2**-11, 1 - 2**-11, 1 + 2**-12, 1 + 3 * 2**-12])
    with np.errstate(invalid="ignore", over="ignore"):
        ties = (halves.astype(np.float32)[:, None] * near).ravel()
        tiny = np.arange(-4096, 4096, dtype=np.float32) * np.float32(2.0**-26)
        values = np.concatenate([values, ties, tiny, [0.0, -0.0]]).astype(np.float32)
        values = values[~np.isnan(values) & (np.abs(values) <= limit)]
        out = np.empty(len(values), casts.STORAGE[kind])
        casts.narrow(out, values, kind)
    assert np.array_equal(out.view(np.uint8), stored(values, kind).view(np.uint8))


def test_nan_stays_nan_in_every_type(loaded):
    for kind in TORCH:
        out, back = np.empty(2, casts.STORAGE[kind]), np.empty(2, np.float32)
        casts.narrow(out, np.float32([np.nan, 1]), kind)
        casts.widen(back, out, kind)
        assert np.isnan(back[0]) and back[1] == 1, kind


@pytest.mark.parametrize("num_written, is_loaded", [(10**8, False), (10**9, True)])
def test_torch_is_loaded_where_it_saves_more_than_it_costs(num_written, is_loaded):
    script = (
        "import sys; from edm2lite.ema.casts import load_torch_if_faster\n"
        f"load_torch_if_faster(10**9, {num_written}, 2)\n"
        f"assert ('torch' in sys.modules) is {is_loaded}"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_reconstruct_ema_does_not_wait_for_torch_and_writes_the_same_bits(tmp_path, dtype):
    weights = {"w": torch.randn(50, 40, generator=torch.Generator().manual_seed(0))}
    ema = PowerFunctionEMA(weights)
    for step in range(1, 33):
        weights["w"] += 0.001
        ema.update(64 * step)
        ema.save_snapshots(tmp_path / "run" / "snapshots", dtype)
    script = (
        "import sys\nfrom edm2lite.tools.reconstruct_ema import main\n"
        "main(sys.argv[1:], standalone_mode=False)\nassert 'torch' not in sys.modules\n"
    )
    out = tmp_path / "ema"
    arguments = [str(tmp_path / "run"), "--sigma-rel", "0.07,0.12", "--out", str(out)]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    again = reconstruct(tmp_path / "run", sigma_rel=[0.07, 0.12], out=tmp_path / "b", dtype=dtype)
    for result in again:
        (with_torch, one), (without, other) = (
            load_tensors(folder / result.path.name) for folder in (tmp_path / "b", out)
        )
        assert one == other and torch.equal(with_torch["w"], without["w"])
        assert with_torch["w"].dtype == dtype
