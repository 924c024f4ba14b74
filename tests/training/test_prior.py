"""DreamBooth: what makes up a batch, how it counts, and that a run continues bit for bit."""

import numpy as np
import pytest
import torch
from training_runs import digests, run_jobs

from edm2lite import generate, load
from edm2lite.dataset import open_dataset
from edm2lite.dataset.joined import joined
from edm2lite.dataset.subset import subset
from edm2lite.sampling.settings import Sampling
from edm2lite.tensorfile import load_tensors
from edm2lite.training.config import load_config
from edm2lite.training.trainer import Trainer

CPU = torch.device("cpu")
TEXT = """
init: {init}
data: {{source: digits, classes: [9], per_class: 5}}
loss: {{P_mean: -0.4, P_std: 1.2}}
optim: {{ref_lr: 0.01, rampup_nimg: 0}}
tune: {{kind: {kind}}}
prior: {{generate: 6, classes: [0, 1, 2], seed: 100, steps: 2}}
batch_size: 4
microbatch: 3
total_nimg: 16
status_nimg: 16
snapshot_nimg: 8
checkpoint_nimg: 8
"""


def write(path, init, kind="lora"):
    path.write_text(TEXT.format(init=init, kind=kind))
    return str(path)


def trainer_of(config, out, *changes):
    return Trainer(load_config(config, changes), out, CPU)


def train(*arguments):
    trainer = trainer_of(*arguments)
    trainer.train()
    return trainer


def test_every_batch_is_half_new_images_and_half_prior(run_dir, tmp_path):
    trainer = trainer_of(write(tmp_path / "t.yaml", run_dir), tmp_path / "out")
    digits = open_dataset("digits")
    new = {digits.read(int(row)).tobytes() for row in np.flatnonzero(digits.labels == 9)[:5]}
    made = open_dataset(tmp_path / "out" / "prior.zip")
    old = {made.read(i).tobytes(): int(made.labels[i]) for i in range(6)}
    seen = {"new": [], "old": []}
    for nimg in range(0, 60, 4):  # the sixth batch begins another pass over both
        parts = trainer.batches.batch(nimg)
        assert [len(part.indices) for part in parts] == [3, 1]
        for part in parts:
            rows = zip(part.indices, part.images, part.conditioning["label"].tolist(), strict=True)
            for position, image, label in rows:
                pixels = image.numpy().tobytes()
                if position % 2:
                    assert old[pixels] == label
                else:
                    assert pixels in new and label == 9
                seen["old" if position % 2 else "new"].append(pixels)
    trainer.close()
    for kind, count in (("new", 5), ("old", 6)):  # each pass shows each image once
        assert all(
            len(set(seen[kind][i : i + count])) == count for i in range(0, 30 - count, count)
        )
    order = [seen["new"][i : i + 5] for i in range(0, 30, 5)]
    assert len({tuple(images) for images in order}) > 1


def test_a_sample_is_a_function_of_its_position(run_dir, tmp_path):
    config = write(tmp_path / "t.yaml", run_dir)
    first = trainer_of(config, tmp_path / "a")
    second = trainer_of(config, tmp_path / "b", "batch_size=8", "microbatch=8")
    small = [*first.batches.batch(0), *first.batches.batch(4)]
    (large,) = second.batches.batch(0)
    first.close(), second.close()
    for name in ("images", "noise", "z"):
        assert torch.cat([getattr(part, name) for part in small]).equal(getattr(large, name))


def test_the_prior_is_what_the_model_generates(run_dir, tmp_path):
    trainer_of(write(tmp_path / "t.yaml", run_dir), tmp_path / "out").close()
    found = open_dataset(tmp_path / "out" / "prior.zip")
    classes = [seed % 3 for seed in range(100, 106)]  # in turn
    images = generate(
        load(run_dir), range(100, 106), classes=classes, sampling=Sampling(num_steps=2), device=CPU
    )
    assert [*found.labels] == classes and "000100.png" in found.names[0]
    assert np.stack([found.read(i) for i in range(6)]).tolist() == images.numpy().tolist()


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_run_with_a_prior_continues_bit_for_bit(kind, run_dir, tmp_path):
    config = write(tmp_path / "t.yaml", run_dir, kind)
    whole = train(config, tmp_path / "whole")
    logvar = load_tensors(run_dir / "last.safetensors")[0]["logvar_linear.weight"]
    assert whole.net.logvar_linear.weight.equal(logvar)
    train(config, tmp_path / "parts", "total_nimg=8")
    images = tmp_path / "parts" / "prior.zip"
    before = images.read_bytes(), images.stat().st_mtime_ns
    assert before[0] == (tmp_path / "whole" / "prior.zip").read_bytes()
    train(config, tmp_path / "parts")
    assert (images.read_bytes(), images.stat().st_mtime_ns) == before  # made once
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")
    assert not [*(tmp_path / "parts").glob("prior.zip.*")]


def test_images_of_a_run_that_was_killed_are_completed(run_dir, tmp_path, monkeypatch):
    config = write(tmp_path / "t.yaml", run_dir)
    trainer_of(config, tmp_path / "whole").close()
    from edm2lite.sampling.image_folder import ImageFolder

    def killed(folder):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ImageFolder, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            trainer_of(config, tmp_path / "out")
    assert not (tmp_path / "out" / "prior.zip").exists()  # whole or absent
    parts = tmp_path / "out" / "prior.zip.parts"
    (parts / "000000" / "000103.png").unlink()
    trainer_of(config, tmp_path / "out").close()
    assert not parts.exists()
    content = [(tmp_path / name / "prior.zip").read_bytes() for name in ("whole", "out")]
    assert content[0] == content[1]


def test_the_loss_of_the_prior_has_its_weight(run_dir, tmp_path):
    """Gradients are linear in the weight, and those of the halves alone follow from it."""
    config, grads = write(tmp_path / "t.yaml", run_dir, "full"), {}
    for weight in (0.0, 1.0, 3.0):
        trainer = trainer_of(config, tmp_path / str(weight), f"prior.weight={weight}")
        batches = trainer.batches.batch(0)
        for batch in batches:
            trainer._backward(trainer._inputs(batch), batch)
        grads[weight] = trainer.net.unet.out_conv.weight.grad.clone()
        if weight == 0:  # what is left is half of the mean over the new images
            trainer.optimizer.zero_grad()
            for batch in batches:
                keep = torch.from_numpy(batch.indices % 2 == 0)
                inputs = trainer._inputs(batch)
                terms = trainer.loss(inputs)
                (terms.loss[keep].sum() / 2).backward()
            alone = trainer.net.unet.out_conv.weight.grad
            torch.testing.assert_close(2 * grads[0.0], alone, atol=1e-6, rtol=1e-4)
        trainer.close()
    expected = grads[0.0] + 3 * (grads[1.0] - grads[0.0])
    assert (grads[3.0] - grads[1.0]).abs().max() > 1e-4
    torch.testing.assert_close(grads[3.0], expected, atol=1e-5, rtol=1e-3)


def test_a_data_set_can_be_the_prior(run_dir, tmp_path):
    config = write(tmp_path / "t.yaml", run_dir)
    trainer = trainer_of(config, tmp_path / "out", "prior={source: digits, classes: [3]}")
    (a, b) = trainer.batches.batch(0)
    labels = [*a.conditioning["label"].tolist(), *b.conditioning["label"].tolist()]
    trainer.close()
    assert labels == [9, 3, 9, 3] and not (tmp_path / "out" / "prior.zip").exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        (["prior={generate: 4, source: digits}"], "prior must give either source or generate"),
        (["prior={weight: 2.0}"], "prior must give either source or generate, got both or none"),
        (["prior={generate: 0}"], "prior.generate must be at least 1, got 0"),
        (["prior.weight=-1"], "prior.weight must be at least 0, got -1"),
        (["prior.classes=[]"], "prior.classes must hold at least one class"),
        (["prior.classes=[10]"], r"prior.classes must be classes of .*, 0 to 9, got \[10\]"),
        (["prior={source: digits, prompts: [a cat]}"], "prior.prompts are for prior.generate"),
        (["prior.prompts=[a cat]"], "text"),
        (["prior.steps=0"], "prior.steps at least 1"),
        (["prior={source: nowhere}"], "no data set at nowhere"),
        (["prior={source: digits, classes: [11]}"], "must be classes that digits has images of"),
        (["data.buckets=true"], "data.buckets must be false with prior"),
        (["batch_size=5", "total_nimg=20", "status_nimg=20", "snapshot_nimg=10",
          "checkpoint_nimg=10"], "batch_size must be even with prior"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_written(
    changes, message, run_dir, tmp_path
):
    config = write(tmp_path / "t.yaml", run_dir)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        trainer_of(config, tmp_path / "out", *changes)
    assert not (tmp_path / "out").exists()


def test_a_prior_needs_a_model(tmp_path):
    with pytest.raises(ValueError, match="init must be given with prior"):
        load_config("digits", ["prior.generate=4"])


def test_a_file_with_another_number_of_images_is_refused(run_dir, tmp_path):
    config, out = write(tmp_path / "t.yaml", run_dir), tmp_path / "out"
    trainer_of(config, out).close()
    trainer_of(config, tmp_path / "more", "prior.generate=8").close()
    (tmp_path / "more" / "prior.zip").replace(out / "prior.zip")
    with pytest.raises(ValueError, match=r"prior.zip must hold 6 images, it has 8; restore it"):
        trainer_of(config, out)


def test_data_sets_that_do_not_go_together_are_not_joined(tmp_path):
    from PIL import Image

    digits = open_dataset("digits")
    for size, mode, message in (
        ((8, 8), "RGB", "must have images of one shape with digits"),
        ((8, 16), "L", "must have images of one shape with digits"),
        ((8, 8), "L", "must have labels of the kind that digits has"),
    ):
        folder = tmp_path / f"{size}{mode}"
        folder.mkdir()
        Image.new(mode, size).save(folder / "a.png")
        with pytest.raises(ValueError, match=message):
            joined(digits, open_dataset(folder))
    few = subset(digits, np.flatnonzero(digits.labels < 3))
    assert joined(few, digits).labels.max() == 9  # they have ten classes
    both = joined(digits, few)
    assert both.read(1798).tolist() == few.read(1).tolist() and both.title(1798) == few.title(1)
    folder = tmp_path / "named" / "0"
    folder.mkdir(parents=True)
    Image.new("L", (8, 8)).save(folder / "a.png")
    Image.new("L", (8, 8)).save(folder / "b.png")
    named = open_dataset(folder.parent)
    assert joined(digits, named).title(1798) == named.title(1)


@pytest.mark.slow
def test_two_processes_share_a_prior_that_one_of_them_makes(run_dir, tmp_path):
    config = write(tmp_path / "t.yaml", run_dir)
    train(config, tmp_path / "one")
    codes, text = run_jobs({"args": [config, "--out", str(tmp_path / "two")], "ranks": 2})
    assert codes == [[0, 0]], text
    one, two = (open_dataset(tmp_path / name / "prior.zip") for name in ("one", "two"))
    assert one.images(range(6)).tolist() == two.images(range(6)).tolist()
    expected, _ = load_tensors(tmp_path / "one" / "last.safetensors")
    found, _ = load_tensors(tmp_path / "two" / "last.safetensors")
    for name, value in expected.items():  # four steps of Adam on sums taken in another order
        limit = 2e-3 * float(value.abs().max())
        torch.testing.assert_close(found[name], value, rtol=0, atol=limit)
