"""The configurations of the ladder against the table of arXiv 2312.02696, and as a chain."""

import pytest

from edm2lite.config_file.source import read_yaml
from edm2lite.training.config import load_config

TABLE = {  # batch, peak rate, t_ref, beta2, P_mean, P_std, loss scale, dropout, levels that attend
    "a": (4096, 1e-4, 0, 0.999, -1.2, 1.2, 100, 0.1, (32, 16, 8)),
    "b": (2048, 2e-4, 0, 0.99, -0.4, 1.0, 100, 0.1, (16, 8)),
    "c": (2048, 2e-4, 0, 0.99, -0.4, 1.0, 100, 0.1, (16, 8)),
    "d": (2048, 0.01, 0, 0.99, -0.4, 1.0, 1, 0.1, (16, 8)),
    "e": (2048, 0.01, 70000, 0.99, -0.4, 1.0, 1, 0.1, (16, 8)),
    "f": (2048, 0.01, 70000, 0.99, -0.4, 1.0, 1, 0.1, (16, 8)),
    "g": (2048, 0.01, 70000, 0.99, -0.4, 1.0, 1, 0.0, (16, 8)),
}


def load(name):
    return load_config(name, ["data.source=somewhere"])


@pytest.mark.parametrize("rung", TABLE)
def test_rung_is_the_column_of_the_table(rung):
    config = load(f"ladder-{rung}")
    net, optim = config.net.backbone, config.optim
    assert TABLE[rung] == (
        config.batch_size, optim.ref_lr, optim.ref_batches, optim.beta2, config.loss.P_mean,
        config.loss.P_std, optim.loss_scale, net.dropout, net.attn_resolutions,
    )  # fmt: skip
    assert (net.model_channels, net.img_resolution, net.label_dim) == (192, 64, 1000)
    assert config.weighting.is_learned == (rung != "a")
    assert config.total_nimg == 2**31 and optim.rampup_nimg == 10_000_000
    assert getattr(net, "rung", "g") == rung


def test_the_last_rung_is_the_preset_of_its_size():
    assert load("ladder-g") == load("edm2-img512-s")


@pytest.mark.parametrize("rung", TABLE)
def test_small_rungs_scale_ramp_and_decay_with_the_run(rung):
    """A ramp of a 200th of the run, and a decay from 70k of 2147.5 M / 2048 steps on."""
    config, full = load(f"ladder-small-{rung}"), load(f"ladder-{rung}")
    steps, optim = config.total_nimg / config.batch_size, config.optim
    assert optim.rampup_nimg == pytest.approx(config.total_nimg / 200, abs=config.batch_size / 2)
    share = 70_000 * 2048 / 2147.5e6 if full.optim.ref_batches else 0
    assert optim.ref_batches == pytest.approx(share * steps, abs=0.5)
    assert (optim.beta2, optim.loss_scale) == (full.optim.beta2, full.optim.loss_scale)
    assert config.net.backbone.dropout == full.net.backbone.dropout
    assert config.weighting == full.weighting


def test_b_changes_the_training_of_a_and_e_that_of_d():
    for one, other, names in (("a", "b", {"attn_resolutions"}), ("d", "e", set())):
        before, after = (load(f"ladder-{rung}").net.backbone.to_dict() for rung in (one, other))
        assert {key for key in before if before[key] != after[key]} == {"rung", *names}


def test_a_file_says_what_it_changes_of_its_base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text(
        "base: digits\nseed: 7\noptim: {ref_lr: 0.5}\nema: {sigma_rels: [0.1]}\n"
        "hooks: [{kind: validation, every: 640, data: digits}]\n"
    )
    (tmp_path / "next.yaml").write_text("base: own.yaml\nloss: {kind: cosine}\nseed: 8\n")
    own, plain = load_config("own.yaml"), load_config("digits")
    assert (own.seed, own.optim.ref_lr, own.ema.sigma_rels) == (7, 0.5, (0.1,))
    assert own.optim.ref_batches == plain.optim.ref_batches and own.net == plain.net
    after = load_config("next.yaml", ["optim.ref_lr=0.25"])
    assert (after.seed, after.optim.ref_lr, len(after.hooks)) == (8, 0.25, 1)
    # a part with a kind of its own is not joined with that of the base: it has other keys
    assert after.loss.kind == "cosine" and not hasattr(after.loss, "P_mean")
    assert "base" not in read_yaml("next.yaml") and "base" not in own.to_yaml()


def test_a_circle_of_bases_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(ValueError, match="end, got a.yaml -> b.yaml -> a.yaml"):
        load_config("a.yaml")
    (tmp_path / "c.yaml").write_text("base: none.yaml\n")
    with pytest.raises(FileNotFoundError, match=r"no configuration none.yaml"):
        load_config("c.yaml")
