"""Images are written on threads while the next batch is made: same files, same errors."""

import errno
import io
import threading

import numpy as np
import pytest
import torch
from sampling.generating import fail, files, succeed

from edm2lite.image_grid import png
from edm2lite.models.loading import load
from edm2lite.network.conditioning import Conditioning
from edm2lite.sampling import Sampling, generate
from edm2lite.sampling.generation import image_generator
from edm2lite.sampling.image_folder import ImageFolder
from edm2lite.sampling.images import ImageGenerator
from edm2lite.sampling.launched import GeneratedBatch, one_ahead
from edm2lite.threads import map_in_threads


def batch_of(*seeds):
    pixels = np.random.default_rng(seeds).integers(0, 256, (len(seeds), 3, 5, 4), np.uint8)
    return GeneratedBatch(list(seeds), Conditioning(), torch.from_numpy(pixels))


def test_every_image_is_in_its_place_and_batches_count_in_order(tmp_path):
    folder = ImageFolder(tmp_path)
    batches = [batch_of(*range(7)), batch_of(*range(7, 40)), batch_of(40)]
    assert list(folder.write_all([], ahead=3)) == list(folder.write_all([batch_of()])) == []
    assert list(folder.write_all(batches, ahead=3)) == [7, 33, 1]
    assert files(tmp_path) == {
        f"000000/{seed:06d}.png": png(image)
        for batch in batches
        for seed, image in zip(batch.seeds, batch.images.numpy(), strict=True)
    }


def test_the_next_batch_is_made_while_images_are_written(tmp_path, monkeypatch):
    """The images of the first batch wait for the second one, which would wait for ever for them."""
    begun = threading.Event()
    waited = []

    def slow(path, image):
        waited.append(begun.wait(timeout=30))

    def batches():
        yield batch_of(0, 1, 2)
        begun.set()
        yield batch_of(3)

    monkeypatch.setattr("edm2lite.sampling.image_folder.save_png", slow)
    assert list(ImageFolder(tmp_path).write_all(batches())) == [3, 1]
    assert waited == [True] * 4


def test_each_batch_is_fetched_when_the_next_is_launched():
    log = []
    fetched = one_ahead(
        lambda part: log.append(f"launch {part}") or part, lambda part: part, range(3)
    )
    for part in fetched:
        log.append(f"fetched {part}")
    assert log == ["launch 0", "launch 1", "fetched 0", "launch 2", "fetched 1", "fetched 2"]
    assert list(one_ahead(None, None, [])) == []


def test_an_error_of_the_items_comes_after_the_results_before_it():
    drawn = []

    def items():
        for i in range(5):
            drawn.append(i)
            yield i
        raise ValueError("the fifth")

    results = map_in_threads(lambda i: i, items(), 2, ahead=1)
    assert next(results) == 0 and drawn == [0, 1]  # nothing is drawn further ahead than that
    assert [next(results) for _ in range(4)] == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="the fifth"):
        next(results)


def test_a_full_disk_ends_in_one_line_and_leaves_whole_files(names, tmp_path, monkeypatch):
    common = (names[0], "--seeds", "0-199", "--steps", 1)
    succeed(*common, "--out", tmp_path / "whole")
    whole = files(tmp_path / "whole")

    class Half(io.FileIO):
        """A file on a disk with room for half of what comes."""

        def write(self, data):
            super().write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

    def small_disk(path, mode):
        return (Half if ".000150.png" in path.name else open)(path, mode)

    out = tmp_path / "images"
    with monkeypatch.context() as patched:
        patched.setattr("edm2lite.sampling.whole_files.open", small_disk, raising=False)
        line = fail(*common, "--out", out)
    assert line == f"Error: No space left on device: {out}/000000/000150.png"
    there = files(out)
    assert there.items() <= whole.items()  # whole, and nothing else
    assert all(f"000000/{seed:06d}.png" in there for seed in range(128))  # of earlier batches
    succeed(*common, "--out", out)
    assert files(out) == whole


def test_an_interrupted_command_leaves_whole_files_and_continues(names, tmp_path):
    model, out = load(names[0]), tmp_path / "images"
    settings = {"classes": "all", "sampling": Sampling(num_steps=1)}
    generate(model, range(200), out=tmp_path / "whole", **settings)

    def interrupt(done, total):
        if done >= 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(model, range(200), out=out, progress=interrupt, **settings)
    there = files(out)
    assert 64 <= len(there) - 2 < 200 and there.items() <= files(tmp_path / "whole").items()
    generate(model, range(200), out=out, **settings)
    assert files(out) == files(tmp_path / "whole")


def test_batches_of_a_gpu_have_one_size_whatever_is_left(names):
    """So that an image of a job does not depend on which others are there already."""
    model, gpu = load(names[0]), torch.device("cuda")
    generator = ImageGenerator(model, range(100), batch_size=32, device=gpu)
    assert generator.rows == generator.part([99]).rows == 32
    assert len(generator) == 4 and len(generator.part([99])) == 1
    few = image_generator(model, range(5), batch_size=32, device="cuda")
    assert few.rows == few.part([2]).rows == 5  # there are no more, however often it continues
