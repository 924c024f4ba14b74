"""In which order images are shown, against counts and probabilities worked out by hand."""

from collections import Counter

import numpy as np
import pytest

from edm2lite.dataset.buckets import Buckets
from edm2lite.dataset.order import Balanced, Bucketed, Stream

SIZES = np.array([[8, 8]] * 50 + [[8, 12]] * 23 + [[12, 8]] * 7)


def rows(order, begin, count):
    return order.rows(np.arange(begin, begin + count))


def batches(order, count, batch_size=8):
    return [rows(order, k * batch_size, batch_size) for k in range(count)]


def test_a_stream_shows_all_its_rows_in_every_round_in_a_new_order():
    members = np.array([3, 5, 8, 9])
    stream = Stream(members, seed=1)
    rounds = [tuple(rows(stream, 4 * k, 4)) for k in range(10)]
    assert all(sorted(r) == [3, 5, 8, 9] for r in rounds) and len(set(rounds)) > 5
    assert tuple(rows(stream, 2, 6)) == rounds[0][2:] + rounds[1]


def test_every_class_is_shown_equally_often_and_so_are_its_images():
    labels = np.array([0] * 90 + [1] * 6 + [2] * 3 + [-1] * 5)
    shown = rows(Balanced(labels, seed=0), 0, 3 * 18)
    assert set(Counter(labels[shown]).values()) == {18}
    assert all(sorted(labels[shown[i : i + 3]]) == [0, 1, 2] for i in range(0, 54, 3))
    counts = Counter(shown[labels[shown] == 1])
    assert set(counts.values()) == {3} and len(counts) == 6  # 18 turns over 6 images
    assert len(set(shown[labels[shown] == 0])) == 18  # none twice while others wait


@pytest.mark.parametrize("labels", [None, np.zeros((4, 2), np.float32)])
def test_balance_needs_classes(labels):
    with pytest.raises(ValueError, match="must have class indices"):
        Balanced(labels, 0)


def test_every_batch_has_one_size_and_every_image_its_share():
    order = Bucketed(SIZES, seed=0, batch_size=8)
    shown = batches(order, 80)  # 640 images: 8 rounds of 80
    assert all(len({tuple(SIZES[r]) for r in batch}) == 1 for batch in shown)
    counts = np.bincount(np.concatenate(shown), minlength=80)
    # every bucket's 8 rounds fill whole batches, so nothing is left over
    assert (counts == 8).all()


def test_after_any_number_of_epochs_no_image_is_ahead_by_more_than_one():
    order = Bucketed(SIZES, seed=3, batch_size=8)
    for epochs in (1, 2, 5):
        num_batches = int(sum(epochs * n // 8 for n in (50, 23, 7)))
        counts = np.bincount(np.concatenate(batches(order, num_batches)), minlength=80)
        assert counts.min() >= epochs - 1 and counts.max() <= epochs


def test_the_next_bucket_is_drawn_by_what_remains():
    first = Counter()
    pairs = Counter()
    for seed in range(3000):
        order = Bucketed(np.array([[8, 8]] * 32 + [[8, 12]] * 16), seed, batch_size=8)
        a, b = order.batch(0)[0], order.batch(1)[0]
        first[a] += 1
        pairs[a, b] += 1
    # 4 and 2 batches: 2/3 first; after a first of bucket 0, 3 of the 5 left are of bucket 0.
    # three standard errors of a share of 3000 (2000) draws are 0.026 (0.033)
    assert first[0] / 3000 == pytest.approx(4 / 6, abs=0.026)
    assert pairs[0, 0] / first[0] == pytest.approx(3 / 5, abs=0.033)


def test_any_batch_is_found_without_those_before_it_and_by_every_process_alike():
    order = Bucketed(SIZES, seed=5, batch_size=8)
    whole = batches(order, 60)
    for k in (59, 3, 31):
        fresh = Bucketed(SIZES, seed=5, batch_size=8)
        parts = [rows(fresh, 8 * k + 2 * rank, 2) for rank in range(4)]
        np.testing.assert_array_equal(np.concatenate(parts), whole[k])


def test_buckets_smaller_than_a_batch_wait_until_it_is_full():
    order = Bucketed(np.array([[8, 8]] * 3 + [[8, 12]] * 2), seed=0, batch_size=16)
    shown = batches(order, 10, 16)  # 160 images: 32 rounds of 5
    assert (np.bincount(np.concatenate(shown)) == 32).all()


def test_buckets_of_512_are_the_published_ones():
    sizes = {tuple(s) for s in Buckets.of(512).sizes.tolist()}
    widths = {256: 1024, 320: 1024, 384: 1024, 448: 832, 512: 768, 576: 640, 640: 576, 704: 512,
              768: 512, 832: 448, 896: 384, 960: 384, 1024: 384}  # fmt: skip
    published = {(h, w) for w, h in widths.items()} | set(widths.items())
    assert sizes == published | {(512, 512)}


def test_images_go_to_the_nearest_aspect_ratio():
    buckets = Buckets.of(512)
    nearest, errors = buckets.assign(np.array([[1000, 1000], [300, 450], [100, 1000], [512, 768]]))
    assert buckets.sizes[nearest].tolist() == [[512, 512], [512, 768], [256, 1024], [512, 768]]
    np.testing.assert_allclose(errors, [0, 0, np.log(10 / 4), 0], atol=1e-12)


def test_steps_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="multiple of the bucket step, got 512 and 100"):
        Buckets.of(512, 100)
