"""Folders of raw checkpoints as runs. Oracle: sums in float64 of what safetensors, torch saved."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
import xxhash
from safetensors.torch import load_file, save_file

from edm2lite.ema import PowerFunctionEMA, Window, list_snapshots, plan_targets, reconstruct
from edm2lite.ema.building import build
from edm2lite.ema.doctor import examine
from edm2lite.ema.verification import verify_reconstruction
from edm2lite.interop.checkpoint_times import TimeRule
from edm2lite.interop.raw_run import import_checkpoints

STEPS = [100 * k for k in range(1, 7)]


def course(seed=0, dtype=torch.float32):
    """Step -> tensors of a model that walks at random; the order of names is not that of files."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        "layer.weight": torch.randn(40, 30, generator=generator),
        "layer.bias": torch.randn(40, generator=generator),
        "head": torch.randn(30, 7, generator=generator),
    }
    states = {}
    for step in STEPS:
        for value in weights.values():
            value += 0.1 * torch.randn(value.shape, generator=generator)
        states[step] = {n: v.to(dtype).clone() for n, v in weights.items()}
        states[step]["positions"] = torch.arange(12)
    return states


def save_sharded(folder, tensors, shards, config=True):
    """As Hugging Face saves it: shards, an index, and the configuration."""
    folder.mkdir(parents=True)
    places = {}
    for i, names in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        save_file({n: tensors[n] for n in names}, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if config:
        (folder / "config.json").write_text(json.dumps({"dtype": "float32", "vocab_size": 7}))
        (folder / "tokenizer.json").write_text("{}")
        (folder / "optimizer.pt").write_bytes(b"not read")


SHARDS = [["layer.weight", "positions"], ["head", "layer.bias"]]
OTHER_SHARDS = [["head"], ["layer.bias", "layer.weight"], ["positions"]]


def hugging_face(folder, states, trainer=True):
    for step, tensors in states.items():
        sub = folder / f"checkpoint-{step}"
        save_sharded(sub, tensors, SHARDS if step < 400 else OTHER_SHARDS)
        if trainer:
            state = '{"global_step": %d, "num_input_tokens_seen": %d, "loss": NaN}'
            (sub / "trainer_state.json").write_text(state % (step, 4096 * step))
    return folder


def files(folder, states, save, name):
    folder.mkdir()
    for step, tensors in states.items():
        save(tensors, folder / name.format(step))
    return folder


def save_dcp(tensors, path):
    with warnings.catch_warnings(action="ignore"):
        dcp.save({"net": tensors, "optim": {"lr": 0.1}}, checkpoint_id=path)


LAYOUTS = {
    "sharded": lambda folder, states: hugging_face(folder, states),
    "safetensors": lambda f, s: files(f, s, save_file, "step_{}.safetensors"),
    "torch": lambda f, s: files(f, s, torch.save, "ckpt-{}.pt"),
    "nested": lambda f, s: files(
        f, s, lambda t, p: torch.save({"model": t, "step": 1, "rng": [1]}, p), "ckpt-{}.pt"
    ),
    "wrapped": lambda f, s: files(
        f, s, lambda t, p: torch.save({f"module.{n}": v for n, v in t.items()}, p), "step{}.bin"
    ),
    "legacy": lambda f, s: files(
        f, s, lambda t, p: torch.save(t, p, _use_new_zipfile_serialization=False), "ckpt-{}.pt"
    ),
    "dcp": lambda f, s: files(f, s, save_dcp, "{:012d}"),
}


def combined(plan, states):
    """The sum that a plan states, in float64."""
    return {
        name: sum(
            x * states[s][name].double() for x, s in zip(plan.coefficients, STEPS, strict=True)
        )
        for name in ("layer.weight", "layer.bias", "head")
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_kind_of_checkpoint_gives_the_sum_that_its_plan_states(layout, tmp_path):
    states = course()
    folder = LAYOUTS[layout](tmp_path / "from", states)
    infos = import_checkpoints(folder, tmp_path / "run", part="net" if layout == "dcp" else None)
    assert [info.nimg for info in infos] == STEPS and {i.clock for i in infos} == {"steps"}
    in_place = layout in ("sharded", "safetensors")
    assert all(bool(info.header.shards) == in_place for info in infos)
    target = Window(250, 600)
    for solver in ("wsm", "calibrated"):
        (plan,) = plan_targets(tmp_path / "run", profiles=target, solver=solver)
        (result,) = build([plan])
        for name, expected in combined(plan, states).items():
            error = (result.state_dict[name].double() - expected).abs().max()
            assert error < 4 * 2**-24 * expected.abs().max() * plan.sum_abs
        assert result.state_dict["positions"].tolist() == list(range(12))
    path = build([plan], out=tmp_path / "out")[0].path
    assert verify_reconstruction(path, tmp_path / "run") == len(STEPS)
    assert not examine(tmp_path / "run", [0.1]).findings


def test_a_checkpoint_in_place_and_its_copy_give_the_same_bits(tmp_path):
    folder = hugging_face(tmp_path / "from", course(dtype=torch.bfloat16))
    results = []
    for name, copy in (("placed", False), ("copied", True)):
        infos = import_checkpoints(folder, tmp_path / name, copy=copy)
        assert all(bool(info.header.shards) != copy for info in infos)
        results.append(reconstruct(tmp_path / name, sigma_rel=0.1, max_error=1).state_dict)
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    assert {info.header.digest for info in infos} == {
        info.header.digest for info in list_snapshots(tmp_path / "placed")
    }
    sizes = [
        sum(p.stat().st_size for p in (tmp_path / n).rglob("raw*")) for n in ("placed", "copied")
    ]
    assert sizes[0] < 12_000 < sizes[1]


def test_the_time_is_what_was_recorded_or_what_the_rule_of_names_gives(tmp_path):
    folder = hugging_face(tmp_path / "from", course())

    def times(**options):
        out = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        return [i.nimg for i in import_checkpoints(folder, out, TimeRule(**options))]

    assert times(clock="tokens") == [4096 * step for step in STEPS]
    assert times(clock="tokens", per_step=10) == [10 * step for step in STEPS]
    assert times(clock="images", pattern=r"-(\d+)", per_step=64) == [64 * step for step in STEPS]
    with pytest.raises(ValueError, match="give --per-step"):
        times(clock="images")
    with pytest.raises(FileNotFoundError, match="state the rule of their names"):
        times(pattern=r"epoch(\d+)")
    for path in folder.iterdir():
        (path / "trainer_state.json").write_text('{"global_step": 7}')
    with pytest.raises(ValueError, match="are both of 7 steps"):
        times()


def test_raw_weights_join_a_run_of_averages(tmp_path):
    """The order of the tensors is then that of the run, which is not that of the files."""
    states = course()
    live = {name: value.clone() for name, value in states[100].items()}
    ema = PowerFunctionEMA(live, clock="steps", folder=tmp_path / "run" / "snapshots")
    for step, tensors in states.items():
        for name, value in tensors.items():
            live[name].copy_(value)
        ema.update(step)
        ema.save_snapshots()
    ema.release()
    folder = hugging_face(tmp_path / "from", states)
    with pytest.raises(ValueError, match="counted as in the run, in steps, got images"):
        import_checkpoints(folder, tmp_path / "run", TimeRule("images", per_step=1))
    import_checkpoints(folder, tmp_path / "run")
    infos = list_snapshots(tmp_path / "run")
    assert sum(info.is_raw for info in infos) == 6 and len(infos) == 18
    assert {info.run for info in infos} == {ema.run}
    (plan,) = plan_targets(tmp_path / "run", sigma_rel=0.15)
    assert len(plan.inputs) == 18
    direct = reconstruct([info for info in infos if not info.is_raw], sigma_rel=0.15, max_error=1)
    mixed = reconstruct(tmp_path / "run", sigma_rel=0.15, max_error=1)
    assert mixed.predicted_error <= direct.predicted_error * (1 + 1e-9)
    (merged,) = plan_targets(tmp_path / "run", sigma_rel=0.15, solver="wsm")
    (paper,) = plan_targets(tmp_path / "run", sigma_rel=0.15, solver="paper")
    assert len(merged.inputs) == 6 and all(i.is_raw for i in merged.inputs)
    assert len(paper.inputs) == 12 and not any(i.is_raw for i in paper.inputs)


def test_importing_again_changes_nothing_and_other_weights_are_refused(tmp_path):
    folder = hugging_face(tmp_path / "from", course())
    first = import_checkpoints(folder, tmp_path / "run")
    bits = [info.path.read_bytes() for info in first]
    again = import_checkpoints(folder, tmp_path / "run")
    assert [info.path.read_bytes() for info in again] == bits
    other = hugging_face(tmp_path / "other", course(seed=1))
    with pytest.raises(ValueError, match="must not hold other weights of that time"):
        import_checkpoints(other, tmp_path / "run")


def test_shards_that_change_or_go_are_noticed(tmp_path):
    folder = hugging_face(tmp_path / "from", course())
    import_checkpoints(folder, tmp_path / "run")
    shard = folder / "checkpoint-300" / "model-00002-of-00002.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match="holds other bytes"):
        reconstruct(tmp_path / "run", sigma_rel=0.1, max_error=1)
    assert [f.state for f in examine(tmp_path / "run", [0.1]).findings] == ["corrupted"]
    shard.write_bytes(data + b" ")
    with pytest.raises(ValueError, match="was written anew since"):
        list_snapshots(tmp_path / "run")
    shard.unlink()
    with pytest.raises(ValueError, match="is gone; restore it"):
        list_snapshots(tmp_path / "run")


def broken(folder, kind):
    """Damage the checkpoint of step 300 in a folder of Hugging Face."""
    sub = folder / "checkpoint-300"
    first, second = sorted(sub.glob("*.safetensors"))
    index = sub / "model.safetensors.index.json"
    tensors = load_file(first)
    if kind == "shard":
        second.unlink()
    elif kind == "index":
        index.write_text(index.read_text().replace('"head"', '"tail"'))
    elif kind == "path":
        index.write_text(index.read_text().replace("model-00001", "../model-00001"))
    elif kind == "json":
        index.write_text(index.read_text()[:-5])
    elif kind == "cut":
        second.write_bytes(second.read_bytes()[:-9])
    elif kind == "quantized":
        save_file({**tensors, "layer.weight": torch.ones(40, 30, dtype=torch.int8)}, first)
    elif kind == "fp8":
        save_file({**tensors, "layer.weight": torch.ones(40, 30).to(torch.float8_e4m3fn)}, first)
    elif kind == "config":
        (sub / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    elif kind == "shape":
        save_file({**tensors, "layer.weight": torch.ones(40, 31)}, first)
    elif kind == "nan":
        save_file({**tensors, "layer.weight": torch.full((40, 30), float("nan"))}, first)
    elif kind == "weights":
        for path in (first, second, index):
            path.unlink()
    else:
        names = {**tensors, "extra": torch.ones(3)}
        save_file(names, first)
        places = json.loads(index.read_text())
        places["weight_map"]["extra"] = first.name
        index.write_text(json.dumps(places))


@pytest.mark.parametrize(
    "kind, message",
    [
        ("shard", "model-00002-of-00002.safetensors is missing"),
        ("index", "head is in model-00002-of-00002|tail is not in model-00002-of-00002"),
        ("path", "must name a file beside it"),
        ("json", "must be an index of shards"),
        ("cut", "where its header promises"),
        ("quantized", r"checkpoint-300 is quantized \(layer.weight is int8\)"),
        ("fp8", "holds numbers of type F8_E4M3"),
        ("config", r"is quantized \(its config.json says gptq\)"),
        ("shape", "of one architecture, layer.weight is"),
        ("extra", "extra is in checkpoint-300 and not in checkpoint-600"),
        ("weights", "checkpoint-300 must hold the weights"),
        ("nan", "layer.weight in .* is not; move the checkpoint"),
    ],
)
def test_a_broken_checkpoint_is_one_line_before_anything_is_written(kind, message, tmp_path):
    folder = hugging_face(tmp_path / "from", course())
    broken(folder, kind)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        import_checkpoints(folder, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("run/snapshots/raw*"))
    assert kind == "nan" or not (tmp_path / "run").exists()


class _Executed:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize("layout", ["torch", "dcp"])
def test_no_pickle_is_executed(layout, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = LAYOUTS[layout](tmp_path / "from", course())
    path = folder / "ckpt-300.pt" if layout == "torch" else folder / f"{300:012d}" / ".metadata"
    torch.save(_Executed(), path, _use_new_zipfile_serialization=layout == "torch")
    with pytest.raises(ValueError, match="executed|does not belong|valid pickle|damaged"):
        import_checkpoints(folder, tmp_path / "run", part="net" if layout == "dcp" else None)
    assert not Path("executed").exists() and not (tmp_path / "run").exists()


def test_pieces_of_distributed_tensors_are_put_together(tmp_path):
    """Rows, and blocks along both axes, as FSDP2 and tensor parallelism write them."""
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

    from edm2lite.interop.distributed_checkpoint import DistributedTensor, Piece

    whole = torch.arange(24.0).reshape(4, 6)

    def pieces(cuts):
        found = []
        for k, (rows, columns) in enumerate(cuts):
            path = tmp_path / f"{len(list(tmp_path.iterdir()))}-{k}"
            part = whole[slice(*rows), slice(*columns)].clone()
            torch.save(part, path)
            chunk = ChunkStorageMetadata(torch.Size([rows[0], columns[0]]), part.shape)
            size = path.stat().st_size
            found.append(Piece(tuple(chunk.offsets), tuple(chunk.sizes), path, 0, size))
        return DistributedTensor("F32", (4, 6), tuple(found))

    rows = pieces([((2, 4), (0, 6)), ((0, 2), (0, 6))])
    assert torch.equal(torch.cat(list(rows.values())), whole) and len(list(rows.values())) == 2
    blocks = pieces([((a, a + 2), (b, b + 3)) for a in (0, 2) for b in (0, 3)])
    (found,) = blocks.values()
    assert torch.equal(found, whole)


def test_mixed_types_are_summed_as_they_are(tmp_path):
    """Norms in float32 beside weights in bfloat16; later checkpoints in float32 altogether."""
    states, folder = course(), tmp_path / "from"
    for step in STEPS[:3]:
        states[step]["layer.weight"] = states[step]["layer.weight"].bfloat16()
    for step, tensors in states.items():
        save_sharded(folder / f"checkpoint-{step}", tensors, SHARDS)
    infos = import_checkpoints(folder, tmp_path / "run")
    assert [info.dtype for info in infos] == ["bfloat16"] * 3 + ["float32"] * 3
    (plan,) = plan_targets(tmp_path / "run", sigma_rel=0.1)
    result = reconstruct(tmp_path / "run", sigma_rel=0.1, max_error=1)
    for name, expected in combined(plan, states).items():
        error = (result.state_dict[name].double() - expected).abs().max()
        assert error < 8 * 2**-24 * expected.abs().max() * plan.sum_abs


def test_the_digest_is_of_the_bytes_in_the_order_of_the_reference(tmp_path):
    """Whatever the shards are: computed here from the tensors that were saved."""
    states = course()
    folder = hugging_face(tmp_path / "from", states)
    infos = import_checkpoints(folder, tmp_path / "run")
    for info in infos:
        state = xxhash.xxh3_128()
        for name in info.header.tensors:
            state.update(np.ascontiguousarray(states[info.nimg][name].numpy()).tobytes())
        assert info.header.digest == state.hexdigest()


def test_the_header_of_another_tool_may_have_spaces(tmp_path):
    """JSON as json.dumps writes it, which is not how the safetensors library does."""
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    text = json.dumps({"__metadata__": {"format": "pt"}, "w": entry}).encode()
    for step in (1, 2):
        data = np.array([step, 1], np.float32).tobytes()
        path = tmp_path / f"step_{step}.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    assert len(import_checkpoints(tmp_path, tmp_path / "run")) == 2
