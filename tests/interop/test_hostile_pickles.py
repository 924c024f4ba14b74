"""Files that want to run code: refused by name, and nothing runs."""

import copyreg
import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from official_files import (
    HEAD,
    SMALL,
    Calls,
    EasyDict,
    official_bytes,
    official_network,
    random_net,
    refused,
    rgb_encoder,
    text,
)

from edm2lite.interop.edm2_network import read_network


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "executed"


@pytest.fixture
def evil(marker):
    return Calls(os.system, f"touch {marker}")


ASKS = r"asks for posix.system, which does not belong in it; nothing of it was executed"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_trap_works_and_is_refused(tmp_path, evil, marker, protocol):
    content = pickle.dumps({"ema": evil}, protocol)
    refused(tmp_path, content, ASKS)
    pickle.loads(content)
    assert marker.exists()


def with_evil(position, evil):
    """A network file with the call of a command in it."""
    network, encoder, more = official_network(random_net(SMALL)), rgb_encoder(), {}
    block = network.unet.dec["8x8_in0"]
    match position:
        case "beside the network":
            more["note"] = evil
        case "network":
            network = evil
        case "state of the network":
            network.note = evil
        case "state of a block":
            block.dropout = evil
        case "settings":
            network._init_kwargs["sigma_data"] = evil
        case "name of a setting":
            network._init_kwargs[evil] = 1
        case "hook":
            block._forward_hooks[0] = evil
        case "hook of a tensor":
            weight = block.conv_res0.weight
            block.conv_res0.__dict__["_parameters"]["weight"] = Calls(
                torch._utils._rebuild_parameter, weight.data, False, evil
            )
        case "encoder":
            encoder = evil
        case "argument of the reducer":
            network.unet.__class__.__reduce__ = lambda self: (
                official_network(random_net(SMALL)).__reduce__()[0], (evil,)
            )  # fmt: skip
        case "source of a module":
            network.unet.__class__.__reduce__ = lambda self: (
                official_network(random_net(SMALL)).__reduce__()[0],
                (EasyDict(class_name="UNet", module_src=evil, state=self.__dict__),),
            )
        case "second argument of the reducer":
            network.unet.__class__.__reduce__ = lambda self: (
                official_network(random_net(SMALL)).__reduce__()[0], (EasyDict(), evil)
            )  # fmt: skip
    return official_bytes(network=network, encoder=encoder, **more)


@pytest.mark.parametrize(
    "position",
    [
        "beside the network", "network", "state of the network", "state of a block", "settings",
        "name of a setting", "hook", "hook of a tensor", "encoder", "argument of the reducer",
        "source of a module", "second argument of the reducer",
    ],
)  # fmt: skip
def test_a_command_is_refused_wherever_it_stands(tmp_path, evil, position):
    refused(tmp_path, with_evil(position, evil), ASKS)


def with_storage(data):
    """A network file whose output convolution has ``data`` as the archive of its storage."""
    network = official_network(random_net(SMALL))
    storage = Calls(torch.storage._load_from_bytes, data)
    weight = Calls(
        torch._utils._rebuild_tensor_v2, storage, 0, (2, 8, 3, 3), (72, 9, 3, 1), False, {}
    )
    network.unet.out_conv._parameters["weight"] = weight
    return official_bytes(network=network)


def archive(
    obj=None, *, numel=144, size=None, kind=torch.HalfStorage, system=None, keys=("0",), magic=0
):
    """A storage as torch writes it, or with parts of it replaced."""
    file = io.BytesIO()
    for part in (0x1950A86A20F9469CFC6C + magic, 1001, system or {"little_endian": True}):
        pickle.dump(part, file, 2)

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", kind, "0", "cpu", numel, None) if value is Ellipsis else None

    Pickler(file, 2).dump(Ellipsis if obj is None else obj)
    pickle.dump(list(keys), file, 2)
    file.write(struct.pack("<q", numel) if isinstance(numel, int) else bytes(8))
    file.write(np.ones(144 if size is None else size, np.float16).tobytes())
    return file.getvalue()


def test_a_storage_may_hold_numbers_and_nothing_else(tmp_path, evil, marker):
    path = tmp_path / "sound.pkl"
    path.write_bytes(with_storage(archive()))
    assert read_network(path).tensors["unet.out_conv.weight"].eq(1).all(), (
        "the archive itself is fine"
    )
    real = io.BytesIO()
    torch.save(torch.ones(144), real, _use_new_zipfile_serialization=False)
    modern = io.BytesIO()
    torch.save({"storage": evil}, modern)
    assert zipfile.is_zipfile(modern)
    for data, message in (
        (archive(evil), ASKS),
        (archive(system={"little_endian": evil}), ASKS),
        (archive(keys=[evil]), ASKS),
        (archive(numel=evil), ASKS),
        (pickle.dumps(evil) + archive(), ASKS),
        (real.getvalue(), "asks for torch._utils._rebuild_tensor_v2"),
        (modern.getvalue(), "pickle instruction PERSID"),
        (archive(magic=1), "archive format"),
        (archive(system={"little_endian": False}), "little-endian"),
        (archive(kind=torch.LongStorage), "asks for torch.LongStorage"),
        (archive(keys=["0", "1"]), "invalid header"),
        (archive([]), "holds something else"),
        (archive(numel=2**40), "promises 1099511627776 values in 288 bytes"),
        (archive(size=0), "in 0 bytes"),
        (archive(size=143), "in 286 bytes"),
        (archive()[:50], "is cut short"),
        (b"", "is cut short"),
    ):
        refused(tmp_path, with_storage(data), message)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(io.BytesIO(modern.getvalue()), weights_only=True)
    torch.load(io.BytesIO(archive(evil, keys=())), weights_only=False)
    assert marker.exists(), "the trap works"


@pytest.mark.parametrize(
    "offset, shape, stride",
    [
        (0, (2**20, 2**20), (0, 0)),
        (1, (2, 8, 3, 3), (72, 9, 3, 1)),
        (-1, (2, 8, 3, 3), (72, 9, 3, 1)),
        (0, (2, 8, 3, 3), (72, 9, -3, 1)),
        (0, (2, 8, 3, 3), (144, 9, 3, 1)),
        (0, (2, 8, 3, 3), (72, 9, 3)),
        (0, (2, 0, 3, 3), (72, 9, 3, 1)),
        (0, (2, 8, True, 3), (72, 9, 3, 1)),
        ("0", (2, 8, 3, 3), (72, 9, 3, 1)),
        (0, [[2]], (1,)),
        (0, None, None),
    ],
)
def test_a_tensor_stays_within_its_storage(tmp_path, offset, shape, stride):
    network = official_network(random_net(SMALL))
    storage = Calls(torch.storage._load_from_bytes, archive())
    weight = Calls(torch._utils._rebuild_tensor_v2, storage, offset, shape, stride, False, {})
    network.unet.out_conv._parameters["weight"] = weight
    content = official_bytes(network=network)
    refused(tmp_path, content, "unet.out_conv.weight (does not fit in its|as .2, 8, 3, 3.)")


def test_instructions_that_reach_past_names_are_refused(tmp_path, marker):
    run = text(f"touch {marker}") + b"\x85R."
    dotted = HEAD + text("torch") + text("os.system") + b"\x93" + run
    rebuild, default = torch._utils._rebuild_tensor_v2, text("__defaults__")
    copyreg.add_extension("posix", "system", 240)
    try:
        for content, message in (
            (dotted, "asks for torch.os.system"),
            (HEAD + text("torch_utils.persistence") + text("x.__globals__") + b"\x93.", "globals"),
            (HEAD + text("builtins") + text("eval") + b"\x93.", "asks for builtins.eval"),
            (b"\x80\x02c__builtin__\neval\n.", "asks for builtins.eval"),
            (HEAD + b"(" + text("x") + b"iposix\nsystem\n.", "pickle instruction INST"),
            (HEAD + b"(cposix\nsystem\n" + text("x") + b"o.", "asks for posix.system"),
            (HEAD + b"\x82\xf0" + run, "pickle instruction EXT1"),
            (HEAD + b"Pposix.system\n.", "pickle instruction PERSID"),
            (HEAD + b"ccollections\nOrderedDict\n)}\x92.", "pickle instruction NEWOBJ_EX"),
            (HEAD + b"\x98.", "pickle instruction READONLY_BUFFER"),
            (HEAD + b"\xff.", "pickle instruction 0xff"),
            # a name is no object: its attributes cannot be set, and it cannot be called unnamed
            (HEAD + b"ctorch._utils\n_rebuild_tensor_v2\nN}" + default + b")s\x86b.", "not a val"),
            (HEAD + text("os") + text("system") + b"\x86" + run, "not a valid pickle"),
            (HEAD + b"]" + text("system") + b"\x93.", "not a valid pickle"),
            (HEAD + b"}" + text("x") + b"Q" + b"Ns.", "not a valid pickle"),
            (HEAD + text("posix.system") + b"Q.", "mapping as its content, holds reference"),
            (HEAD + b"cc\n\xff\n.", "not a valid pickle"),
        ):  # fmt: skip
            refused(tmp_path, content, message)
            assert torch._utils._rebuild_tensor_v2 is rebuild and rebuild.__defaults__ == (None,)
    finally:
        copyreg.remove_extension("posix", "system", 240)
    with pytest.raises(TypeError):  # what a dotted name does in pickle.loads: it does reach it
        pickle.loads(HEAD + text("torch") + text("os.system") + b"\x93)R.")
