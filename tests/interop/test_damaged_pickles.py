"""Files that were damaged, or want all memory or time: one line, or finite weights."""

import dataclasses
import pickle
import signal
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from official_files import HEAD, SMALL, Calls, official_bytes, official_network, random_net, refused

from edm2lite.interop import inert_pickle
from edm2lite.interop.edm2_network import read_network
from edm2lite.interop.inert_pickle import read_pickle

HUGE = struct.pack("<Q", 2**40)
TUPLES = b"".join(b"q%ch%c\x86" % (k, k) for k in range(60))  # each holds the one before twice


@pytest.mark.parametrize(
    "content, message",
    [
        (HEAD + b"\x95" + HUGE + b"\x8e" + HUGE, "cut short"),
        (HEAD + b"\x8e" + HUGE + bytes(99), "it needs 1099511627776 more bytes and has 99"),
        (HEAD + b"\x8d" + HUGE + bytes(99), "cut short"),
        (HEAD + b"\x96" + HUGE + bytes(99), "cut short"),
        (HEAD + b"B\xff\xff\xff\xff" + bytes(99), "cut short"),
        (HEAD + b"\x8b\xff\xff\xff\x7f" + bytes(99), "integer of 2147483647 bytes"),
        (HEAD + b"\x8b\xff\xff\xff\xff" + bytes(99), "cut short"),
        (HEAD + b"Nr\xff\xff\xff\xff.", "mapping as its content, holds None"),
        (HEAD + b"j\xff\xff\xff\xff.", "not a valid pickle"),
        (HEAD + b"}" * 100_000 + b".", "more than 100000 pickle instructions"),
        (HEAD + b"(" * 50_000 + b".", "not a valid pickle"),
        (HEAD + b"]" * 40_000 + b"a" * 39_999 + b".", "mapping as its content, holds list"),
        (HEAD + b"})" + TUPLES + b"Ns.", "not a valid pickle"),  # its hash would take 2^60 steps
        (HEAD + b"}N}" + b"s.", "not a valid pickle"),
        (HEAD + b"}(NNNu.", "not a valid pickle"),
        (HEAD + b"0.", "instruction POP"),
        (HEAD + b".", "not a valid pickle"),
        (HEAD + b"N.N.", "2 bytes follow after its end"),
        (b"", "cut short"),
        (b"\n\n", "pickle instruction"),
    ],
)  # fmt: skip
def test_memory_and_time_are_bounded_by_the_size_of_a_file(tmp_path, monkeypatch, content, message):
    monkeypatch.setattr(inert_pickle, "MAX_INSTRUCTIONS", 100_000)  # to fill fewer
    tracemalloc.start()
    try:
        refused(tmp_path, content, message)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # a byte makes a list or a dict, and with it an entry of a stack, at most
    assert peak < 2**20 + 150 * len(content)


def test_weights_that_share_memory_cannot_multiply_it(tmp_path):
    official = official_network(random_net(dataclasses.replace(SMALL, model_channels=64)).half())
    intact = official_bytes(network=official)
    largest = max(official.parameters(), key=torch.Tensor.numel).detach().clone()
    function, args = largest._typed_storage().__reduce__()
    storage = Calls(function, *args)
    for module in official.modules():
        for name, value in module._parameters.items():
            view = (storage, 0, tuple(value.shape), value.stride(), False, {})
            module._parameters[name] = Calls(torch._utils._rebuild_tensor_v2, *view)
    shared = official_bytes(network=official)
    assert len(shared) < len(intact) / 2, "all of them are views of one"
    refused(tmp_path, shared, r"describes \d+ weights, more than its \d+ bytes can hold")


def test_a_container_that_holds_itself_ends():
    content = pickle.dumps(loop := [1], 4)
    loop.append(loop)
    loops, _ = read_pickle(memoryview(pickle.dumps(loop, 4)), ())
    assert loops[1] is loops and read_pickle(memoryview(content), ())[1] == len(content)


def mutated(content, rng):
    """A copy with a few random bytes flipped, cut out, inserted, repeated, or cut off."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(data)))
        match int(rng.integers(6)):
            case 0 | 1:
                data[at] ^= 1 << int(rng.integers(8))
            case 2:
                data[at] = int(rng.integers(256))
            case 3:
                del data[at : at + int(rng.integers(1, 9))]
            case 4:
                data[at:at] = rng.bytes(int(rng.integers(1, 9)))
            case 5 if rng.random() < 0.2:
                del data[at:]
            case 5:
                data[at:at] = data[max(0, at - 40) : at]
        if not data:
            break
    return bytes(data)


def tensors_or_message(path):
    try:
        return read_network(path).tensors
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_damaged_files_end_in_one_line_or_in_finite_weights(tmp_path, protocol):
    intact = official_bytes(random_net(SMALL).half(), protocol=protocol)
    rng = np.random.default_rng(protocol)
    path = tmp_path / "net.pkl"
    survived, reasons = 0, set()
    signal.alarm(100)  # in place of hanging
    try:
        for _ in range(300):
            path.write_bytes(mutated(intact, rng))
            result = tensors_or_message(path)
            if isinstance(result, str):
                assert result.startswith(f"{path} ") and "\n" not in result
                reasons.add(" ".join(result.removeprefix(f"{path} ").split()[:3]))
            else:
                survived += 1
                assert all(torch.isfinite(value).all() for value in result.values())
    finally:
        signal.alarm(0)
    # damage of a number changes a weight only, and is common; the rest is found in many places
    assert 10 < survived < 290 and len(reasons) > 8, (survived, reasons)
