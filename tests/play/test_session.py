"""What a person can choose, and that the images are those of the command that is shown."""

import dataclasses
import shlex

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sampling.generating import save_net
from tiny_run import tiny_config

from edm2lite import generate, load, open_dataset
from edm2lite.models.adapters import Adapter, save_adapter
from edm2lite.models.encoders import PixelEncoder
from edm2lite.play import Fields, Session
from edm2lite.play.settings import EARLIER, UNCONDITIONAL
from edm2lite.sampling import Sampling
from edm2lite.sweep import Point, write_csv
from edm2lite.tools._play_page import class_choices, length_range
from edm2lite.tools.edm2lite import main as edm2lite
from edm2lite.training.trainer import Trainer

TWO = Sampling(num_steps=2)


@pytest.fixture(scope="module")
def session(run_dir):
    return Session(run_dir)


def choice(session, **changes):
    return dataclasses.replace(session.settings(), num=3, num_steps=2, **changes)


def images_of(command, out):
    """The images that a command makes, which was shown with --grid."""
    words = shlex.split(command)
    assert words[0] == "edm2lite" and words[-2] == "--grid"
    result = CliRunner().invoke(edm2lite, [*words[1:-2], "--out", str(out)])
    assert result.exit_code == 0, result.output
    return torch.from_numpy(open_dataset(out).images(range(3)))


def test_a_run_leaves_the_choices_that_its_model_takes(session):
    assert session.fields.classes == tuple("0123456789") and session.fields.side == 8
    assert session.fields.guides == (EARLIER,)  # it was trained without label dropout
    assert not (session.fields.takes_prompts or session.fields.controls or session.fields.adapters)
    assert session.settings().sigma_rel == 0.1


@pytest.mark.parametrize(
    "changes",
    [
        {"sigma_rel": 0.123, "classes": "7"},
        {"sigma_rel": 0.08, "nimg": 960, "classes": "all", "seed": 5},
        {"sigma_rel": 0.1, "guidance": 2.0, "guide": EARLIER},
    ],
)
def test_images_are_those_of_the_command_that_is_shown(session, tmp_path, changes):
    drawn = session.draw(choice(session, **changes))
    assert drawn.images.equal(images_of(drawn.command, tmp_path / "a"))
    assert "predicted error" in drawn.words and "\n" not in drawn.words


def test_a_class_of_the_list_is_meant_by_its_number_whatever_its_name(tmp_path):
    net = load(save_net(tmp_path / "plain.safetensors", label_dim=3)).net
    encoder = PixelEncoder(shift=77.83, scale=191.79).to_json()
    named = net.save(
        tmp_path / "named.safetensors", {"encoder": encoder, "class_names": '["1", "2", "3"]'}
    )
    session = Session(named)
    choices = class_choices(session.fields.classes)
    assert [title for title, _ in choices[2:]] == ["1", "2", "3"]
    for k, (_, value) in enumerate(choices[2:]):
        drawn = session.draw(choice(session, classes=value))
        assert drawn.images.labels == [k] * 3 and f"--class number:{k} " in drawn.command


def test_the_slider_begins_within_its_ends():
    assert length_range([0.0504, 0.1], 0.0504) == (5.0, 10.0, 5.0)
    assert length_range([0.05, 0.2496], 0.2496) == (5.0, 25.0, 25.0)
    assert length_range([0.05, 0.2004], 0.2004) == (5.0, 20.0, 20.0)
    assert length_range([0.05, 0.25], 0.1234) == (5.0, 25.0, 12.3)


def test_a_guide_is_the_run_at_a_quarter_of_the_time(session):
    drawn = session.draw(choice(session, guidance=2.0, guide=EARLIER))
    guide = load(f"{session.source}@sigma_rel=0.1,nimg=320")
    guided = dataclasses.replace(TWO, guidance=2.0)
    model = load(f"{session.source}@sigma_rel=0.1")
    assert drawn.images.equal(generate(model, range(3), sampling=guided, guide=guide))
    first = session.averages.times[0]
    with pytest.raises(ValueError, match="needs a snapshot before 160; choose a later time"):
        session.draw(choice(session, guidance=2.0, guide=EARLIER, nimg=first))


def test_a_model_that_is_no_run_is_played_without_lengths(tmp_path):
    name = save_net(tmp_path / "net.safetensors")
    session = Session(name)
    assert session.averages is None and session.curve() is None and not session.refresh()
    assert session.fields.guides == (UNCONDITIONAL,)  # the file does not say that it cannot
    drawn = session.draw(choice(session, classes="2", guidance=2.0, guide=UNCONDITIONAL))
    assert drawn.images.equal(images_of(drawn.command, tmp_path / "a"))
    assert session.settings().sigma_rel is None


def test_an_average_by_name_is_a_model(run_dir):
    session = Session(f"{run_dir}@sigma_rel=0.12")
    assert session.averages is None
    drawn = session.draw(choice(session, classes="2"))
    assert drawn.command.startswith(f"edm2lite generate {run_dir}@sigma_rel=0.12 --class 2")


def test_an_image_to_follow_is_brought_to_the_size_and_channels_of_the_model(tmp_path):
    model = load(save_net(tmp_path / "net.safetensors", cond_channels=1))
    stated = {**model.metadata, "condition_normalization": '{"image": {"mean": 100, "std": 50}}'}
    path = model.net.save(tmp_path / "told.safetensors", stated)
    session = Session(path)
    assert session.fields.controls == ("image",)
    red = np.zeros((20, 30, 3), np.uint8)
    red[..., 0] = 200
    drawn = session.draw(choice(session, controls=(red,), classes="1"))
    gray = torch.full((1, 1, 8, 8), 60, dtype=torch.uint8)  # 0.299 of 200
    expected = generate(str(path), range(3), classes=1, controls=[gray], sampling=TWO)
    assert drawn.images.equal(expected)
    with pytest.raises(ValueError, match=r"follows an image \(image\); give one"):
        session.draw(choice(session, classes="1"))


def test_adapters_have_a_strength_each(run_dir, tmp_path):
    base = load(run_dir)
    layer = "unet.emb_noise"
    shape = base.net.get_submodule(layer).weight.shape
    factors = {f"{layer}.down": torch.randn(2, *shape[1:]), f"{layer}.up": torch.randn(shape[0], 2)}
    adapter = Adapter("a", "lora", factors, base.name, base.identity, scales={layer: 1.0})
    file = save_adapter(tmp_path / "a.safetensors", adapter)
    with pytest.raises(ValueError, match="must be used with the model that it was trained on"):
        Session(run_dir, [str(file)])  # an average of the run is another model
    session = Session(run_dir / "last.safetensors", [f"{file}:0.5"])
    assert session.fields.adapters == (str(file),) and session.settings().strengths == (0.5,)
    drawn = session.draw(choice(session, strengths=(0.25,), classes="1"))
    assert drawn.images.equal(images_of(drawn.command, tmp_path / "out"))
    plain = session.draw(choice(session, strengths=(0.0,), classes="1"))
    assert not plain.images.equal(drawn.images)


def test_a_run_that_trained_an_adapter_has_both_length_and_strength(run_dir, tmp_path):
    small = (
        f"init={run_dir}@sigma_rel=0.1", "tune={kind: lora, rank: 2}", "batch_size=8",
        "microbatch=8", "total_nimg=64", "status_nimg=64", "snapshot_nimg=16", "checkpoint_nimg=64",
    )  # fmt: skip
    Trainer(tiny_config(*small), tmp_path / "tuned", torch.device("cpu")).train()
    session = Session(tmp_path / "tuned")
    assert session.fields.adapters == (str(tmp_path / "tuned"),)
    assert session.settings().strengths == (1.0,)
    for strength in (1.0, 0.5):
        drawn = session.draw(choice(session, sigma_rel=0.12, classes="3", strengths=(strength,)))
        assert drawn.images.equal(images_of(drawn.command, tmp_path / f"{strength}"))
    none = session.draw(choice(session, sigma_rel=0.12, classes="3", strengths=(0.0,)))
    base = load(f"{run_dir}@sigma_rel=0.1")
    assert none.images.equal(generate(base, range(3), classes=3, sampling=TWO))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"seed": -1}, "seeds must be from 0 to 2147483648, got -1"),
        ({"classes": "11"}, "class '11' must be one of the 10 classes"),
        ({"nimg": 100}, "none is at nimg = 100; the nearest is 160"),
        ({"sigma_rel": None}, "is a run and needs an EMA length"),
        ({"guidance": 2.0, "guide": UNCONDITIONAL}, "trained without label dropout"),
        ({"prompts": ("a cat",)}, "takes no prompts"),
    ],
)
def test_mistakes_are_answered_in_one_line(session, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
        session.draw(choice(session, **changes))
    assert "\n" not in str(raised.value)


def test_a_place_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model at .*none; give a file, a run"):
        Session(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="no sweep.csv in .*; give the folder that a sweep"):
        Session(tmp_path, sweep=tmp_path)
    (tmp_path / "run" / "snapshots").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="holds no EMA snapshot"):
        Session(tmp_path / "run")


def test_the_curve_is_that_of_the_sweep_at_the_time_that_is_chosen(run_dir, tmp_path):
    cells = [(None, 1280, 9.0), (0.05, 1280, 4.0), (0.2, 1280, 3.0), (0.1, 640, 1.0)]
    points = [Point(s, n, value=v, low=v - 1, high=v + 1, num=50) for s, n, v in cells]
    guided = Point(0.05, 1280, guidance=2.0, value=0.5, num=50)
    write_csv(tmp_path / "sweep.csv", [*points, guided, Point(0.1, 1280, value=0.1, num=10)])
    session = Session(run_dir, sweep=tmp_path)
    curve = session.curve()
    assert (curve.lengths, curve.values, curve.raw) == ((0.05, 0.2), (4.0, 3.0), 9.0)
    assert curve.low == (3.0, 2.0) and curve.best == 1
    assert curve.at(0.1) == pytest.approx(3.5) and curve.at(0.25) is None  # the middle of the log
    assert session.settings().sigma_rel == 0.2
    assert session.curve(640).lengths == (0.1,)
    assert session.place_words(0.1).endswith("; metric about 3.5 by the sweep")
    errors = session.curve(960)  # no sweep there: predicted errors take its place
    assert errors.best is None and errors.at(0.1) == pytest.approx(
        session.averages.plan(0.1, 960).predicted_error
    )


def test_fields_of_a_model_without_classes_are_few(tmp_path):
    fields = Fields.of(load(save_net(tmp_path / "net.safetensors", label_dim=0)))
    assert fields == Fields(side=8)
