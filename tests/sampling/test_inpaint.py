"""Filling in: what is known stays, what was in the hole does not matter."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from driftar_jax import model
from driftar_jax.sampling import generator, inpaint
from driftar_jax.training import tasks

LABELS = [0, 1, -1]


def loaded(task):
    config = tiny.config(task)
    parts = model.build(config, tiny.IMAGES)
    return generator.Generator(
        config, parts, tiny.params(tasks.build(config, tiny.IMAGES).init), 0, {}
    )


@pytest.fixture(scope="module")
def drift():
    return loaded("drift")


@pytest.fixture(scope="module")
def picture():
    shape = tiny.IMAGES.image_shape
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


@pytest.fixture
def mask(picture):
    """One pixel: the token around it is generated, and shown in that pixel alone."""
    hole = np.zeros(picture.shape[:2], bool)
    hole[-1, 0] = hole[0, 1] = True
    return hole


def test_only_the_hole_changes_whatever_was_in_it(drift, picture, mask):
    made = inpaint.fill(drift, picture, mask, LABELS, seed=3)
    np.testing.assert_array_equal(made.images[:, ~mask], np.stack([picture[~mask]] * 3))
    assert made.images.shape == (3, *picture.shape) and np.ptp(made.images[:, mask], axis=0).any()
    other = np.where(mask[:, :, None], 255 - picture, picture)
    again = inpaint.fill(drift, other, mask, LABELS, seed=3)
    np.testing.assert_array_equal(again.images[:, mask], made.images[:, mask])


def test_the_context_is_read(drift, picture, mask):
    # Untrained weights change a pixel by less than one step of 255.
    run = dataclasses.replace(drift, to_pixels=lambda grid: np.asarray(1e5 * grid, np.int32))
    made, turned = (inpaint.fill(run, p, mask, LABELS) for p in (picture, picture[::-1, ::-1]))
    assert (turned.images[:, mask] != made.images[:, mask]).all()


@pytest.mark.parametrize("task", ["drift", pytest.param("host", marks=pytest.mark.slow)])
def test_a_mask_of_everything_is_plain_sampling(task, drift, picture):
    run = drift if task == "drift" else loaded(task)
    mask = np.ones(picture.shape[:2], bool)
    filled = inpaint.fill(run, picture, mask, LABELS, seed=5, guidance=1.5)
    plain = run.sample(LABELS, seed=5, guidance=1.5)
    np.testing.assert_array_equal(filled.images, plain.images)
    assert jax.tree.leaves(filled.counts) == jax.tree.leaves(plain.counts)


def test_no_more_steps_than_unknown_tokens(drift, picture, mask):
    made = inpaint.fill(drift, picture, mask, [0], ar_steps=4)
    assert made.counts.backbone_calls == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(image=np.zeros((3, 3, 1), np.uint8)), "^image: got '3x3x1', allowed 4x6x1"),
        (dict(mask=np.ones((1, 2), bool)), "^mask: got '1x2', allowed 4x6"),
        (dict(image=np.zeros((4, 6, 1))), "^image: got 'an array of float64', allowed uint8"),
        (dict(mask=np.full((4, 6), 255)), "^mask: got 'an array of int64', allowed bool"),
        (dict(mask="none"), "^mask: got 'no pixel', allowed"),
        (dict(gamma=1), "^gamma: got 1, allowed 0 together"),
    ],
)
def test_bad_input_is_named(drift, picture, mask, change, message):
    change = dict(change)
    image, hole = change.pop("image", picture), change.pop("mask", mask)
    hole = np.zeros_like(mask) if isinstance(hole, str) else hole
    with pytest.raises(ValueError, match=message):
        inpaint.fill(drift, image, hole, [0], **change)


def test_files(tmp_path, picture, mask):
    Image.fromarray(picture[..., 0]).save(tmp_path / "image.png")
    Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(tmp_path / "mask.png")
    image, hole = inpaint.read(tmp_path / "image.png", tmp_path / "mask.png", 1)
    np.testing.assert_array_equal(image, picture)
    np.testing.assert_array_equal(hole, mask)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="^mask: got .*bad.png.*allowed a picture"):
        inpaint.read(tmp_path / "image.png", tmp_path / "bad.png", 1)


def test_what_is_transparent_in_a_mask_stands(tmp_path, picture, mask):
    """White strokes on transparent, as drawing programs write them."""
    Image.fromarray(picture[..., 0]).save(tmp_path / "image.png")
    strokes = np.full((*mask.shape, 4), 255, np.uint8)
    strokes[..., 3] = np.where(mask, 255, 0)
    black = np.where(mask[..., None], strokes, 0).astype(np.uint8)
    for number, drawn in enumerate((strokes, black, strokes[..., [0, 3]])):
        Image.fromarray(drawn).save(tmp_path / f"{number}.png")
        _, hole = inpaint.read(tmp_path / "image.png", tmp_path / f"{number}.png", 1)
        np.testing.assert_array_equal(hole, mask)
