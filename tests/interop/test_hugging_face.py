"""Averages as folders for transformers. Oracle: ``from_pretrained``, and sums in float64."""

import json

import click.testing
import pytest
import torch
from safetensors.torch import load_file

from edm2lite.ema import plan_targets
from edm2lite.interop.hugging_face import build_hugging_face
from edm2lite.interop.raw_run import import_checkpoints
from edm2lite.tools.edm2lite import main as edm2lite
from edm2lite.tools.reconstruct_ema import main as reconstruct_ema

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers about tiny models


def tiny(kind):
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0}
    if kind == "gpt2":  # tied: the head is the embedding, and is not in the files
        config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=16, **sizes)
        return transformers.GPT2LMHeadModel(config)
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, tie_word_embeddings=False, **sizes,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def trained(folder, kind, dtype=torch.float32):
    """Checkpoints as the Trainer leaves them, and the state dict of each."""
    model, states = tiny(kind).to(dtype), []
    for step in range(100, 700, 100):
        with torch.no_grad():
            for p in model.parameters():
                p += 0.01 * torch.randn_like(p)
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        path = folder / f"checkpoint-{step}"
        model.save_pretrained(path, max_shard_size="8KB")
        (path / "tokenizer_config.json").write_text('{"model_max_length": 16}')
        (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        (path / "training_args.bin").write_bytes(b"a pickle that nobody reads")
    model.save_pretrained(folder)  # as Trainer.save_model does, beside the checkpoints
    return states


def invoke(command, *args):
    result = click.testing.CliRunner().invoke(command, [str(arg) for arg in args])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_two_commands_make_a_decayed_model_of_a_trainers_folder(kind, tmp_path):
    states = trained(tmp_path / "output", kind)
    out = invoke(edm2lite, "import", tmp_path / "output", "--raw", "--out", tmp_path / "run")
    assert "6 snapshots" in out and "in place" in out
    decay = ("--decay", "linear:0.5", "--lr-log", "none", "--max-error", "0.5")
    invoke(reconstruct_ema, tmp_path / "run", *decay, "--hf", tmp_path / "model")
    (plan,) = plan_targets(tmp_path / "run", decay="linear:0.5", lr_log="none")
    auto = transformers.AutoModelForCausalLM
    model, report = auto.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report.values())
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert (head is embedding) == (kind == "gpt2")
    for name, value in model.state_dict().items():
        terms = zip(plan.coefficients, states, strict=True)
        expected = sum(x * state[name].double() for x, state in terms)
        assert (value.double() - expected).abs().max() < 2**-21 * plan.sum_abs
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"tokenizer_config.json", "config.json", "generation_config.json"} <= names
    assert not {"trainer_state.json", "training_args.bin"} & names


def test_shards_and_their_index_hold_what_one_file_would(tmp_path):
    trained(tmp_path / "output", "llama", torch.bfloat16)
    import_checkpoints(tmp_path / "output", tmp_path / "run")
    (plan,) = plan_targets(tmp_path / "run", sigma_rel=0.1)
    one = build_hugging_face(plan, tmp_path / "one")
    many = build_hugging_face(plan, tmp_path / "many", shard_bytes=3000)
    whole = load_file(one / "model.safetensors")
    index = json.loads((many / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in many.glob("*.safetensors"))
    assert len(files) > 3 and not list(one.glob("*.index.json"))
    assert files == sorted(set(index["weight_map"].values()))
    parts = {file: load_file(many / file) for file in files}
    assert {n: f for f, tensors in parts.items() for n in tensors} == index["weight_map"]
    for name, value in whole.items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(parts[index["weight_map"][name]][name], value)
    assert index["metadata"]["total_size"] == 2 * sum(v.numel() for v in whole.values())
    auto = transformers.AutoModelForCausalLM
    assert auto.from_pretrained(many).dtype == torch.bfloat16
    wide = build_hugging_face(plan, tmp_path / "wide", dtype="float32")
    assert auto.from_pretrained(wide).dtype == torch.float32


def test_nothing_is_left_of_a_model_that_could_not_be_made(tmp_path):
    trained(tmp_path / "output", "gpt2")
    import_checkpoints(tmp_path / "output", tmp_path / "run")
    (plan,) = plan_targets(tmp_path / "run", sigma_rel=0.1)
    build_hugging_face(plan, tmp_path / "model")
    with pytest.raises(ValueError, match="must go to a new folder"):
        build_hugging_face(plan, tmp_path / "model")
    shard = next((tmp_path / "output" / "checkpoint-300").glob("model*.safetensors"))
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match="holds other bytes"):
        build_hugging_face(plan, tmp_path / "other")
    for path in tmp_path.glob("output/*/config.json"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="name a folder that has it"):
        build_hugging_face(plan, tmp_path / "other")
    assert sorted(p.name for p in tmp_path.iterdir() if "other" in p.name) == []
