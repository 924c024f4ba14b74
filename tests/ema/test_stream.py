"""Reading side by side, threads that share a list, linear algebra on one thread."""

import threading

import numpy as np
import pytest
import torch
from threadpoolctl import ThreadpoolController

from edm2lite.ema.blas import on_one_thread
from edm2lite.ema.blocks import BlockReader
from edm2lite.ema.stream import weighted_sums
from edm2lite.ema.workers import WorkerPool
from edm2lite.tensorfile import read_header, save_tensors
from edm2lite.tensorheader import type_of

SHAPES = {"a": (3, 700), "n": (), "none": (0, 4), "b": (2500,), "c": (1,), "d": (33, 50)}


def files(folder, dtypes):
    """One file per dtype, of random values and one integer."""
    generator = torch.Generator().manual_seed(0)
    written, headers = [], []
    for i, dtype in enumerate(dtypes):
        tensors = {n: torch.randn(s, generator=generator).to(dtype) for n, s in SHAPES.items()}
        tensors["n"] = torch.tensor(i)
        path = save_tensors(folder / f"{i}.safetensors", tensors, {})
        written.append(tensors)
        headers.append(read_header(path))
    return written, headers


def as_tensor(values, kind):
    """A tensor of numbers as files store them: NumPy holds bfloat16 as integers."""
    tensor = torch.from_numpy(np.array(values))
    is_brain = kind == "BF16" and values.dtype == np.uint16
    return tensor.view(torch.bfloat16) if is_brain else tensor


@pytest.mark.parametrize("block_values", [1024, 2100, 2**17])
def test_blocks_hold_every_value_once(tmp_path, monkeypatch, block_values):
    written, headers = files(tmp_path, [torch.float16, torch.float16, torch.float32])
    monkeypatch.setattr("edm2lite.ema.blocks.BLOCK_VALUES", block_values)
    read = [{n: torch.full(s, -1.0).flatten() for n, s in SHAPES.items()} for _ in written]
    sizes = []
    with WorkerPool(2) as crew:
        for parts, views in BlockReader(headers, 1).blocks(crew):
            sizes.append(views.count)
            assert parts[0].first == 0 and parts[-1].last == views.count
            rows = [
                row
                for group, kind in zip(views.groups, views.types, strict=True)
                for row in as_tensor(group, kind)
            ]
            for part in parts:
                for values, row in zip(read, rows, strict=True):
                    count = part.last - part.first
                    values[part.name][part.begin : part.begin + count] = row[part.first : part.last]
            crew.run()
    for values, tensors in zip(read, written, strict=True):
        for name, tensor in tensors.items():
            assert torch.equal(values[name], tensor.float().flatten()), name
    # A run ends only where the types change: before and after the integer.
    rest = 2500 + 1 + 33 * 50
    full = [block_values] * (2100 // block_values), [block_values] * (rest // block_values)
    ends = [x % block_values for x in (2100, rest)]
    assert sizes == [*full[0], *[ends[0]] * (ends[0] > 0), 1, *full[1], *[ends[1]] * (ends[1] > 0)]


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_equal_float64_whatever_the_types_blocks_and_threads(
    tmp_path, monkeypatch, workers, dtype
):
    kinds = [torch.float16, torch.float32, torch.bfloat16, torch.float16]
    written, headers = files(tmp_path, kinds)
    monkeypatch.setattr("edm2lite.ema.blocks.BLOCK_VALUES", 1500)
    monkeypatch.setattr("edm2lite.ema.stream.STRIP_VALUES", 256)
    weights = np.random.default_rng(0).standard_normal((3, 4))
    weights[:, 0] += 1 - weights.sum(axis=1)
    sums = {name: torch.zeros(3, int(np.prod(shape))) for name, shape in SHAPES.items()}
    with WorkerPool(workers) as crew:
        for parts, values in weighted_sums(headers, weights, crew, type=type_of(dtype)):
            for part in parts:
                columns = slice(part.begin, part.begin + part.last - part.first)
                found = as_tensor(values[:, part.first : part.last], type_of(dtype))
                sums[part.name][:, columns] = found.float()
    assert (sums.pop("n") == 3).all()  # of the last file
    for name, found in sums.items():
        stack = torch.stack([tensors[name].double().flatten() for tensors in written])
        exact = torch.from_numpy(weights) @ stack
        # terms of up to 10 in float32, and one rounding to the type
        torch.testing.assert_close(
            found.double(), exact, atol=1e-5, rtol=torch.finfo(dtype).eps / 2 + 1e-6
        )


def test_tensors_are_found_where_their_header_says(tmp_path):
    """Other tools may list tensors in another order than they lie in."""
    written, headers = files(tmp_path, [torch.float32, torch.float32])
    turned = [
        type(h)(h.path, dict(reversed(h.tensors.items())), h.metadata, h.data_start, h.data_bytes)
        for h in headers
    ]
    for header in turned:
        header.metadata.clear()  # no digest of bytes in file order
    with WorkerPool(1) as crew:
        for parts, values in weighted_sums(turned, np.array([[0.25, 0.75]]), crew):
            for part in parts:
                if part.name == "n":
                    continue
                found = torch.from_numpy(values[0, part.first : part.last].copy())
                exact = (0.25 * written[0][part.name] + 0.75 * written[1][part.name]).flatten()
                at = slice(part.begin, part.begin + len(found))
                torch.testing.assert_close(found, exact[at], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_crew_does_everything_once_and_gives_its_threads_back(size):
    before = torch.get_num_threads()
    done, workers = [], set()

    def work(worker, item):
        assert torch.get_num_threads() == 1
        done.append(item)
        workers.add((worker, threading.get_ident()))

    with WorkerPool(size) as crew:
        for _ in range(20):
            crew.add(work, range(20))
            crew.add(work, range(20, 50))
            crew.run()
        crew.run()
    assert sorted(done) == sorted(list(range(50)) * 20)
    assert {worker for worker, _ in workers} <= set(range(size)) and len(crew) == size
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("bad", [0, 29])
def test_a_crew_raises_what_a_worker_met_after_all_have_stopped(size, bad):
    running, done = [], []

    def work(worker, item):
        running.append(item)
        done.append(item)
        try:
            if item == bad:
                raise OSError(f"item {item}")
        finally:
            running.remove(item)

    with WorkerPool(size) as crew:
        crew.add(work, range(30))
        with pytest.raises(OSError, match=f"item {bad}"):
            crew.run()
        assert not running
        crew.add(work, range(100, 110))
        crew.run()  # it goes on working, without what was left
    assert sorted(done[-10:]) == list(range(100, 110)) and done.count(bad) == 1


@pytest.fixture
def blas_threads():
    """A function that tells how many threads each BLAS has; 2 at first."""
    controller = ThreadpoolController()
    with controller.limit(limits=2, user_api="blas"):
        yield lambda: [
            library["num_threads"] for library in controller.info() if library["user_api"] == "blas"
        ]


def test_linear_algebra_runs_on_one_thread_and_others_get_theirs_back(blas_threads):
    before = blas_threads()
    assert before and set(before) == {2}
    assert set(on_one_thread(blas_threads)()) == {1}
    assert blas_threads() == before


def sums_of(headers, weights, workers, kind="F32"):
    """All sums by tensor, [R, n], as they are stored."""
    parts_of = {}
    with WorkerPool(workers) as crew:
        for parts, values in weighted_sums(headers, weights, crew, type=kind):
            for part in parts:
                found = np.array(values[:, part.first : part.last])
                parts_of.setdefault(part.name, []).append(found)
    return {name: np.concatenate(found, axis=1).tobytes() for name, found in parts_of.items()}


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("seed", range(6))
def test_a_sum_has_the_same_bits_whatever_is_computed_with_it(tmp_path, monkeypatch, seed, kind):
    """Files of all types, 1 to 9 targets in every order, several threads, blocks and strips."""
    rng = np.random.default_rng(seed)
    num_files = int(rng.integers(1, 40))
    shapes = {f"t{i}": tuple(rng.integers(1, 90, 2)) for i in range(int(rng.integers(1, 6)))}
    generator = torch.Generator().manual_seed(seed)
    dtypes = [[torch.float16], [torch.float32], [torch.float16, torch.float32, torch.bfloat16]]
    headers = []
    for k in range(num_files):
        dtype = dtypes[seed % 3][k % len(dtypes[seed % 3])]
        tensors = {n: torch.randn(*s, generator=generator).to(dtype) for n, s in shapes.items()}
        headers.append(read_header(save_tensors(tmp_path / f"{k:03d}.safetensors", tensors, {})))
    weights = rng.standard_normal((9, num_files))
    if seed % 2:
        monkeypatch.setattr("edm2lite.ema.stream.TILE_VALUES", 256)
    expected = [sums_of(headers, row[None], 1, kind) for row in weights]
    for count in range(2, 10):
        monkeypatch.setattr("edm2lite.ema.blocks.BLOCK_VALUES", int(rng.integers(1, 9)) * 1024)
        monkeypatch.setattr("edm2lite.ema.stream.STRIP_VALUES", int(rng.integers(1, 9)) * 1024)
        chosen = rng.permutation(9)[:count]
        found = sums_of(headers, weights[chosen], int(rng.integers(1, 5)), kind)
        for name, values in found.items():
            rows = b"".join(expected[r][name] for r in chosen)
            assert values == rows, (seed, count, name)
