"""Where images lie in a picture: pixels looked up by hand, and Pillow as the reader of the PNG."""

import io

import numpy as np
import pytest
from PIL import Image

from edm2lite.image_grid import Layout, arrange, channels_last, mosaic, png


def test_a_mosaic_has_its_images_where_they_belong():
    parts = [np.full((1, 24, 24), value, dtype=np.uint8) for value in (10, 20, 30)]
    picture = mosaic(parts, columns=2)  # each enlarged by 2, one pixel between
    assert picture.shape == (1, 1 + 2 * 49, 1 + 2 * 49)
    assert [picture[0, y, x] for y, x in ((1, 1), (48, 98 - 48), (50, 1), (60, 60))] == [
        10, 20, 30, 255,
    ]  # fmt: skip
    assert (picture[0, 49] == 255).all() and (picture[0, :, 0] == 255).all()


@pytest.mark.parametrize("num, columns", [(1, 1), (5, 3), (6, 3), (2, 4)])
def test_every_pixel_is_an_image_or_the_background(num, columns):
    """Images are numbered, so the picture read cell by cell gives the numbers back in order."""
    images = np.arange(1, num + 1, dtype=np.uint8)[:, None, None, None].repeat(3, 1)
    images = images.repeat(4, 2).repeat(5, 3)
    picture = arrange(images, columns, zoom=2, gap=3, background=0)
    rows = -(-num // columns)
    assert picture.shape == (3, rows * 11 + 3, columns * 13 + 3)
    cells = picture[:, 3:, 3:].reshape(3, rows, 11, columns, 13)
    inside = cells[:, :, :8, :, :10]
    assert (inside == inside[:, :, :1, :, :1]).all()
    assert inside[0, :, 0, :, 0].ravel().tolist() == [*range(1, num + 1)] + [0] * (
        rows * columns - num
    )
    assert picture.sum() == inside.sum()  # what lies between and around is background


def test_cells_of_a_layout_touch_without_a_gap():
    layout = Layout(num=4, columns=2, height=7, width=9)
    assert layout.size == (14, 18)
    assert [layout.corner(i) for i in range(4)] == [(0, 0), (0, 9), (7, 0), (7, 9)]


@pytest.mark.parametrize("channels, mode", [(1, "L"), (3, "RGB")])
def test_pillow_reads_the_png_back(channels, mode):
    image = np.random.default_rng(0).integers(0, 256, (channels, 5, 7), dtype=np.uint8)
    read = Image.open(io.BytesIO(png(image)))
    assert read.mode == mode
    np.testing.assert_array_equal(np.asarray(read), channels_last(image))
