"""Single pictures: modes, orientation, crop."""

import io
import resource
import struct
import zlib

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


def test_transparent_value_of_sixteen_bit_grey():
    deep = np.array([[258, 259, 0], [258, 65535, 255]], np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    head = struct.pack(">IIBBBBB", 3, 2, 16, 0, 0, 0, 0)
    parts = (b"IHDR", head), (b"tRNS", b"\1\2"), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    encoded = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in parts)
    for behind in (255, 0):
        kept = dict(channels=1, size=None, center_crop=True, background=behind)
        want = np.where(deep == 258, behind, deep >> 8)
        np.testing.assert_array_equal(images.decode(encoded, **kept)[..., 0], want)


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


# What orientation 1 to 8 does to what is stored, in NumPy's terms.
UPRIGHT = (
    lambda a: a,
    np.fliplr,
    lambda a: np.rot90(a, 2),
    np.flipud,
    lambda a: np.swapaxes(a, 0, 1),
    lambda a: np.rot90(a, -1),
    lambda a: np.swapaxes(np.rot90(a, 2), 0, 1),
    lambda a: np.rot90(a, 1),
)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_in_every_format(kind, orientation):
    stored = RNG.integers(0, 256, (2, 5, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if kind == "WEBP" else {}
    encoded = _encoded(Image.fromarray(stored), kind, exif=exif, **lossless)
    want = UPRIGHT[orientation - 1](stored)
    np.testing.assert_array_equal(_decode(encoded), want)
    assert images.header(io.BytesIO(encoded)) == (*want.shape[:2], False)


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


def _tiff(*entries, behind=b""):
    """An EXIF block of (tag, type, count, value)."""
    body = struct.pack("<H", len(entries))
    for tag, kind, count, value in entries:
        body += struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<I", 8) + body + struct.pack("<I", 0) + behind


TURN = (0x0112, 3, 1, struct.pack("<H", 6))
AFTER_TWO = struct.pack("<I", 8 + 2 + 24 + 4)
# What cameras and programs write beside the orientation; the pixels are fine.
ODD = {
    "denominator of zero": _tiff(TURN, (0x011A, 5, 1, AFTER_TWO), behind=struct.pack("<II", 72, 0)),
    "header twice": b"Exif\0\0" + _tiff(TURN),
    "signed rational": _tiff(
        TURN, (0x8769, 4, 1, AFTER_TWO), behind=struct.pack("<HHHIi", 1, 0x9204, 10, 1, -5)
    ),
    "two resolutions": _tiff(
        TURN, (0x011A, 5, 2, AFTER_TWO), behind=struct.pack("<4I", 7, 1, 7, 1)
    ),
    "pointer beyond": _tiff(TURN, (0x8769, 4, 1, struct.pack("<I", 9999))),
    "pointer to itself": _tiff(TURN, (0x8769, 4, 1, struct.pack("<I", 8))),
    "unknown type": _tiff(TURN, (0x927C, 77, 4, b"abcd")),
    "text for a number": _tiff(TURN, (0x8825, 2, 4, b"abc\0")),
    "negative in unsigned": _tiff(TURN, (0x0103, 8, 1, struct.pack("<h", -1))),
    "float for an offset": _tiff(TURN, (0x8769, 11, 1, struct.pack("<f", 26.0))),
    "orientation as long": _tiff((0x0112, 4, 1, struct.pack("<I", 6))),
    "orientation as text": _tiff((0x0112, 2, 2, b"6\0")),
    "orientation twice over": _tiff((0x0112, 3, 2, struct.pack("<HH", 6, 1))),
    "orientation of 99": _tiff((0x0112, 3, 1, struct.pack("<H", 99))),
    "orientation as rational": _tiff((0x0112, 5, 1, AFTER_TWO), behind=b"\0" * 30),
    "cut": _tiff(TURN)[:14],
    "empty": b"",
    "zeros": bytes(40),
}


def _jpeg_with(block):
    whole = _encoded(Image.fromarray(RNG.integers(0, 256, (16, 24, 3), np.uint8)), "JPEG")
    block = b"Exif\0\0" + block
    return whole[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + whole[2:]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("block", ODD.values(), ids=ODD)
def test_odd_metadata_does_not_keep_a_picture_from_being_read(block):
    encoded = _jpeg_with(block)
    height, width, _ = images.header(io.BytesIO(encoded))
    assert _decode(encoded).shape == (height, width, 3) and {height, width} == {16, 24}


def _chunk(kind, body, crc=None):
    sum_ = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", sum_)


@pytest.mark.parametrize(
    "chunk",
    [
        _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**22))),
        _chunk(b"iTXt", b"a\0\1\0\0\0" + b"no zlib"),
        _chunk(b"iCCP", b"a\0\7???"),
        _chunk(b"pHYs", b"\0"),
        _chunk(b"tEXt", b"a\0b", crc=7),
        _chunk(b"eXIf", b"??"),
        _chunk(b"gAMA", b""),
    ],
    ids=["long text", "bad text", "profile", "short", "sum", "exif", "gamma"],
)
def test_odd_chunks_do_not_keep_a_png_from_being_read(chunk):
    pixels = RNG.integers(0, 256, (5, 4, 3), np.uint8)
    whole = _encoded(Image.fromarray(pixels))
    encoded = whole[:33] + chunk + whole[33:]
    assert images.header(io.BytesIO(encoded)) == (5, 4, False)
    np.testing.assert_array_equal(_decode(encoded), pixels)


def test_a_thin_strip_is_cut_before_it_is_scaled():
    encoded = _encoded(Image.new("RGB", (4000, 1), (9, 8, 7)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    made = _decode(encoded, size=512)
    assert made.shape == (512, 512, 3) and (made == (9, 8, 7)).all()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16  # KiB


def test_the_square_of_a_strip_is_that_of_the_scaled_strip():
    strip = np.repeat(np.linspace(0, 255, 200).astype(np.uint8)[None], 10, axis=0)
    made = np.asarray(images.crop_to(Image.fromarray(strip), 10), float)
    np.testing.assert_allclose(made[5], strip[5, 95:105], atol=1)


@pytest.mark.parametrize("sides", [(30000, 30000), (65535, 65535), (5000, 4000), (2**31 - 1, 1)])
def test_more_pixels_than_a_file_can_hold_are_refused(sides):
    head = struct.pack(">IIBBBBB", *sides, 8, 2, 0, 0, 0)
    body = _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(b"")) + _chunk(b"IEND", b"")
    encoded = b"\x89PNG\r\n\x1a\n" + body
    for read in (lambda: images.header(io.BytesIO(encoded)), lambda: _decode(encoded)):
        with pytest.raises(images.BadImage) as error:
            read()
        assert "\n" not in str(error.value)


def test_formats_that_run_programs_are_no_pictures(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
    with pytest.raises(images.BadImage, match="not an image that can be read"):
        images.header(tmp_path / "a.png")
