"""The checkpoints of the repository: small, without anybody's folders, and they draw."""

import pathlib

import numpy as np
import pytest

import driftar_jax

MODELS = pathlib.Path(__file__).parents[2] / "models"
FOLDERS = sorted(p.parent for p in MODELS.glob("*/config.json"))


def test_all_are_small_and_say_how_they_were_made():
    files = [p for p in MODELS.rglob("*") if p.is_file()]
    assert FOLDERS and sum(p.stat().st_size for p in files) < 20e6
    said = (MODELS / "README.md").read_text()
    for folder in FOLDERS:
        assert f"`{folder.name}`" in said
        facts = folder / "config.json", *folder.rglob("manifest/metadata")
        assert not any('"/' in path.read_text() for path in facts)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_they_draw_different_images_of_different_classes(folder):
    model = driftar_jax.load(folder)
    images = model.sample([0, 0, 1], seed=1).images
    assert images.dtype == np.uint8 and (images.std(axis=(1, 2, 3)) > 5).all()
    assert len(np.unique(images.reshape(3, -1), axis=0)) == 3
