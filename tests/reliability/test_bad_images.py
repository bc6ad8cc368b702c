"""Spoiled pictures of every format: decoded, or named in one line."""

import io

import numpy as np
import pytest
from damage import CHANGES, refused_in_one_line, spoiled, watched
from hypothesis import given, settings
from PIL import Image

from driftar_jax.data import folder as picture_folder
from driftar_jax.data import images

pytestmark = [
    pytest.mark.timeout(120),
    # Pillow's remarks on what it can still read; Python shows a program's user none of them.
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning"),
]
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("pictures")


def _whole(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
@given(changes=CHANGES)
@settings(max_examples=200)
def test_spoiled_pictures(place, kind, changes):
    encoded = spoiled(_whole(kind), changes)
    with watched(place):
        with refused_in_one_line(images.BadImage):
            images.header(io.BytesIO(encoded))
        with refused_in_one_line(images.BadImage):
            made = images.decode(encoded, channels=3, size=8, center_crop=True)
            assert made.shape == (8, 8, 3) and made.dtype == np.uint8


@given(changes=CHANGES)
@settings(max_examples=60)
def test_a_folder_with_a_spoiled_picture(place, changes):
    root = place / "set"
    (root / "cat").mkdir(parents=True, exist_ok=True)
    for i in range(2):
        (root / "cat" / f"{i}.png").write_bytes(_whole("PNG"))
    (root / "cat" / "bad.png").write_bytes(spoiled(_whole("PNG"), changes))
    with watched(place), refused_in_one_line(also=("data.name: got", "data.image_size: got")):
        for split in ("train", "test"):
            source = picture_folder.open_folder(
                f"folder:{root}", split, image_size=8, center_crop=False
            )
            source.gather(np.arange(len(source)))
