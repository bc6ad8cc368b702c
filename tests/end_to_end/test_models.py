"""The checkpoints of the repository: small, without anybody's folders, and they draw."""

import json
import pathlib

import numpy as np
import pytest

import driftar_jax
from driftar_jax.data import pipeline
from driftar_jax.vae import reconstruction, stored

MODELS = pathlib.Path(__file__).parents[2] / "models"
FOLDERS = sorted(p.parent for p in MODELS.glob("*/config.json"))
DRAWING = [p for p in FOLDERS if "host" in json.loads((p / "config.json").read_text())]


def test_all_are_small_and_say_how_they_were_made():
    files = [p for p in MODELS.rglob("*") if p.is_file()]
    assert FOLDERS and sum(p.stat().st_size for p in files) < 40e6
    said = (MODELS / "README.md").read_text()
    for folder in FOLDERS:
        assert f"`{folder.name}`" in said
        facts = folder / "config.json", *folder.rglob("manifest/metadata")
        assert not any('"/' in path.read_text() for path in facts)


@pytest.mark.slow
def test_the_autoencoder_gives_held_out_pictures_back():
    vae, source = (
        stored.to_pixels(MODELS / "vae_emoji64", 16),
        pipeline.load_source("emoji64", "test"),
    )
    images = np.stack([source[i]["image"] for i in range(0, 64, 2)])
    made = np.asarray(vae(vae.grid(images)))
    assert reconstruction.Reconstructed(images, made).figures()["psnr"] > 26


@pytest.mark.parametrize("folder", DRAWING, ids=lambda f: f.name)
def test_they_draw_different_images_of_different_classes(folder):
    model = driftar_jax.load(folder)
    images = model.sample([0, 0, 1], seed=1).images
    assert images.dtype == np.uint8 and (images.std(axis=(1, 2, 3)) > 5).all()
    assert len(np.unique(images.reshape(3, -1), axis=0)) == 3
