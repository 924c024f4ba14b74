"""Configurations: every shipped one builds, mistakes are explained; the learning rate."""

import pytest
import yaml

from edm2lite.config_file import strict_yaml
from edm2lite.training.config import load_config, shipped
from edm2lite.training.fields import differing
from edm2lite.training.schedule import learning_rate


@pytest.mark.parametrize("name", shipped())
def test_resolved_text_gives_the_same_configuration(name, tmp_path):
    config = load_config(name, [] if name == "digits" else ["data.source=somewhere"])
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert load_config(str(path)) == config


def test_overrides_take_text_forms():
    config = load_config(
        "digits", ["total_nimg=128Ki", "optim.ref_lr=1e-2", "ema.sigma_rels=[0.1]", "seed=3"]
    )
    assert config.total_nimg == 131072 and config.optim.ref_lr == 0.01
    assert config.ema.sigma_rels == (0.1,) and config.seed == 3


@pytest.mark.parametrize(
    "override, message",
    [
        ("optim.ref_lrr=1", "unknown key optim.ref_lrr; the nearest known one is optim.ref_lr"),
        (
            "net.backbone.chanels=1",
            "unknown key net.backbone.chanels; the nearest known one is net.backbone.img_channels",
        ),
        ("batchsize=1", "unknown key batchsize; the nearest known one is batch_size"),
        ("seed=abc", "seed must be a whole number.*got 'abc'"),
        ("optim=3", "optim must hold keys and values"),
        ("total_nimg=1000", "total_nimg must be a multiple of batch_size = 64, got 1000.*is 1024"),
        ("snapshot_nimg=8m", "snapshot_nimg must be a whole number"),
        ("ema.sigma_rels=[0.3]", "ema: sigma_rel must lie between 0 and 0.2887"),
        ("ema.sigma_rels=[]", "at least one length"),
        ("ema.dtype=float8", "ema.dtype must be 'float32', 'float16' or 'bfloat16'"),
        ("net.backbone.img_resolution=9", "net.backbone: img_resolution must be a multiple of 2"),
        ("optim.ref_lr=0", "optim: ref_lr must be positive"),
        ("loss.P_std=-1", "loss: P_std must be positive"),
        ("seed", "--set takes key=value"),
        ("seed.a=1", "seed is a single value"),
    ],
)
def test_mistakes_are_explained_in_one_line(override, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_config("digits", ["seed=0", override])
    assert "\n" not in str(caught.value)


def test_missing_file_says_where_the_shipped_ones_are_listed(tmp_path):
    with pytest.raises(FileNotFoundError, match="edm2lite config lists"):
        load_config("nothing.yaml")
    broken = tmp_path / "a.yaml"
    broken.write_text("a: [1")
    with pytest.raises(ValueError, match="must be YAML"):
        load_config(str(broken))
    broken.write_text("seed: 1")
    with pytest.raises(ValueError, match="data.source must be given"):
        load_config(str(broken))


def test_only_what_changes_the_course_of_a_run_counts_as_different():
    a = load_config("digits")
    assert differing(a, load_config("digits", ["total_nimg=128Ki", "microbatch=16"])) == []
    different = differing(a, load_config("digits", ["optim.ref_lr=0.5", "seed=1"]))
    assert [text.split(" ")[0] for text in different] == ["optim.ref_lr", "seed"]


@pytest.mark.parametrize(
    "iteration, lr",
    [
        (0, 0),
        (1000, 0.002048),
        (4883, 0.01),
        (70_000, 0.01),
        (140_000, 0.00707107),
        (1_048_576, 0.00258374),
    ],
)
def test_learning_rate_is_the_published_one(iteration, lr):
    got = learning_rate(
        iteration * 2048, 2048, ref_lr=0.01, ref_batches=70_000, rampup_nimg=10_000_000
    )
    assert got == pytest.approx(lr, rel=3e-6)


def test_no_ramp_and_no_decay():
    assert learning_rate(0, 8, ref_lr=0.5, ref_batches=0, rampup_nimg=0) == 0.5
    assert learning_rate(10**9, 8, ref_lr=0.5, ref_batches=0, rampup_nimg=0) == 0.5


@pytest.mark.parametrize(
    "text, message",
    [
        ("seed: 1\nseed: 2", r"line 2: seed must be given once"),
        ("net:\n  backbone:\n    kind: unet\n    kind: unet", r"line 4: kind must be given once"),
        ("seed: 1:30", "seed must be a whole number.*got '1:30'"),
        ("seed: true", "seed must be a number, got true"),
        ("seed: 0x10", "seed must be a whole number"),
        ("a: &a [x]\nb: *a", r"line 2: names for values \(&, \*\) are not supported"),
        ("seed: " + "[" * 100_000, "must be YAML"),
        ("loss: {P_mean: .nan}", r"loss: .*finite|loss.P_mean must be finite, got nan"),
        ("encoder: {scale: .inf}", r"finite"),
        ("net: {backbone: {num_blocks: 1000000}}", "num_blocks must lie between 1 and 1024"),
        ("net: {backbone: {head_channels: 0}}", "head_channels must lie between 1 and"),
        ("net: {backbone: {model_channels: 0}}", "model_channels must lie between 1 and"),
        ("net: {backbone: {channel_mult: []}}", "channel_mult must hold a factor"),
        ("net: {backbone: {clip_act: -1}}", "clip_act must lie between"),
        ("net: {backbone: {res_balance: -1}}", "res_balance must lie between 0 and 1"),
        ("net: {backbone: {label_balance: 2}}", "label_balance must lie between 0 and 1"),
    ],
)
def test_surprises_of_yaml_and_numbers_out_of_range_are_refused(tmp_path, text, message):
    digits = strict_yaml.parse(load_config("digits").to_yaml())
    try:
        merged = merge(digits, strict_yaml.parse(text))
        text = yaml.safe_dump(merged)
    except yaml.YAMLError:
        pass  # what is wrong with it is in the text
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_config(str(path))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def merge(values, changes):
    if not isinstance(changes, dict):
        return changes
    return {**values, **{k: merge(values.get(k) or {}, v) for k, v in changes.items()}}


def test_numbers_and_words_are_read_as_they_look():
    assert load_config("digits", ["seed=010"]).seed == 10
    text = "{a: 12, b: -0.5, c: 1e3, d: no, e: true, f: null, g: 2026-11-29, h: 1_000, i: 1.5e-3}"
    assert strict_yaml.parse(text) == {
        "a": 12, "b": -0.5, "c": "1e3", "d": "no", "e": True, "f": None, "g": "2026-11-29",
        "h": 1000, "i": 0.0015,
    }  # fmt: skip


def test_equal_lengths_are_refused_before_anything_is_written():
    for same in ("[0.05,0.05]", "[0.05,0.050001]"):
        with pytest.raises(ValueError, match="sigma_rels must differ in their first five decimals"):
            load_config("digits", [f"ema.sigma_rels={same}"])
