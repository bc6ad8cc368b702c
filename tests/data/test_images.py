"""Single pictures: modes, orientation, crop."""

import io

import numpy as np
import pytest
from PIL import Image

from driftar_jax.data import images

RNG = np.random.default_rng(0)


def _encoded(picture, kind="PNG", **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def _decode(encoded, channels=3, size=None, center_crop=True):
    return images.decode(encoded, channels=channels, size=size, center_crop=center_crop)


def test_rgb_and_grey_come_back_unchanged():
    rgb = RNG.integers(0, 256, (5, 4, 3), np.uint8)
    np.testing.assert_array_equal(_decode(_encoded(Image.fromarray(rgb))), rgb)
    grey = RNG.integers(0, 256, (5, 4), np.uint8)
    encoded = _encoded(Image.fromarray(grey))
    np.testing.assert_array_equal(_decode(encoded, channels=1), grey[..., None])
    np.testing.assert_array_equal(_decode(encoded), np.repeat(grey[..., None], 3, axis=-1))


def test_transparent_pixels_become_white():
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    got = _decode(_encoded(Image.fromarray(rgba)))
    np.testing.assert_array_equal(got[0, 0], (10, 20, 30))
    assert (got[1] == 255).all() and got.shape == (2, 3, 3)


def test_sixteen_bit_grey_keeps_its_high_byte():
    deep = np.array([[0, 255, 256, 65535], [512, 32768, 1000, 40000]], np.uint16)
    got = _decode(_encoded(Image.fromarray(deep)), channels=1)
    np.testing.assert_array_equal(got[..., 0], deep >> 8)


def test_cmyk_becomes_rgb():
    picture = Image.new("RGB", (16, 8), (200, 30, 60)).convert("CMYK")
    got = _decode(_encoded(picture, "JPEG", quality=95))
    assert got.shape == (8, 16, 3)
    assert np.abs(got.astype(int) - (200, 30, 60)).max() < 12


def test_palette_becomes_rgb():
    rgb = np.zeros((4, 6, 3), np.uint8)
    rgb[:, 3:] = (255, 0, 0)
    encoded = _encoded(Image.fromarray(rgb).convert("P"), "GIF")
    np.testing.assert_array_equal(_decode(encoded), rgb)


def test_exif_orientation_is_applied():
    upright = np.zeros((2, 5, 3), np.uint8)
    upright[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned: show it rotated by 90 degrees clockwise
    stored = Image.fromarray(np.rot90(upright))
    encoded = _encoded(stored, exif=exif)
    np.testing.assert_array_equal(_decode(encoded), upright)
    assert images.header(io.BytesIO(encoded)) == (2, 5, False)


@pytest.mark.parametrize("kind", ["float", "truncated", "text", "empty"])
def test_bad_pictures_say_why_in_a_line(kind):
    good = _encoded(Image.fromarray(RNG.integers(0, 256, (40, 40, 3), np.uint8)))
    bad = {
        "float": _encoded(Image.fromarray(np.zeros((3, 3), np.float32)), "TIFF"),
        "truncated": good[: len(good) // 2],
        "text": b"not a picture at all",
        "empty": b"",
    }[kind]
    with pytest.raises(images.BadImage) as error:
        _decode(bad)
    assert str(error.value) and "\n" not in str(error.value) and "0x" not in str(error.value)


def test_right_size_is_left_alone():
    rgb = RNG.integers(0, 256, (7, 7, 3), np.uint8)
    np.testing.assert_array_equal(_decode(_encoded(Image.fromarray(rgb)), size=7), rgb)


def test_crop_takes_the_middle_without_scaling_when_the_short_side_fits():
    rgb = RNG.integers(0, 256, (6, 11, 3), np.uint8)
    got = _decode(_encoded(Image.fromarray(rgb)), size=6)
    np.testing.assert_array_equal(got, rgb[:, 2:8])


def test_crop_halves_by_boxes():
    rgb = RNG.integers(0, 256, (16, 20, 3), np.uint8)
    want = rgb.reshape(8, 2, 10, 2, 3).astype(float).mean((1, 3))  # 8 x 10, then the middle
    want = want.reshape(4, 2, 5, 2, 3).mean((1, 3))[:, :4]
    got = _decode(_encoded(Image.fromarray(rgb)), size=4)
    assert np.abs(got - want).max() <= 2.0  # Pillow rounds up at each halving


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (33, 70), (3, 3), (7, 200)])
def test_any_shape_reaches_the_size(shape):
    encoded = _encoded(Image.fromarray(RNG.integers(0, 256, shape, np.uint8)))
    for crop in (True, False):
        assert _decode(encoded, channels=1, size=6, center_crop=crop).shape == (6, 6, 1)


def test_squeezing_keeps_both_edges_and_cropping_does_not():
    rgb = np.full((8, 24, 3), 128, np.uint8)
    rgb[:, :6], rgb[:, -6:] = 0, 255
    encoded = _encoded(Image.fromarray(rgb))
    squeezed, cropped = (_decode(encoded, size=8, center_crop=c) for c in (False, True))
    assert squeezed[:, 0].max() < 10 and squeezed[:, -1].min() > 245
    assert (cropped == 128).all()
