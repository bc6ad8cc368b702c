"""A published checkpoint in the sampler of every other one: its own functions' images."""

import dataclasses

import jax
import numpy as np
import pytest

import driftar_jax
from driftar_jax.heads import randomness
from driftar_jax.published import model, sampling, stored
from driftar_jax.storage.checkpoints import Checkpoints
from driftar_jax.storage.jsons import write_json

MODEL = model.DriftAR(
    num_tokens=4,
    token_dim=3,
    num_classes=2,
    width=8,
    depth=2,
    num_heads=2,
    buffer_size=2,
    decoder_depth=1,
    draft_depth=1,
)
SEED, LABEL = 5, np.asarray([1, 0, 1])


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Without an autoencoder: images are the latents themselves."""
    folder = tmp_path_factory.mktemp("published")
    rng = np.random.default_rng(0)
    abstract = stored.abstract(MODEL, phi=False)
    params = jax.tree.map(lambda a: 0.3 * rng.standard_normal(a.shape, np.float32), abstract)
    checkpoints = Checkpoints(folder)
    checkpoints.save(0, manifest=stored.manifest_of(MODEL), ema=params)
    checkpoints.close()
    write_json(folder / "config.json", stored.config_of(MODEL, phi=False))
    found = driftar_jax.load(folder)
    with pytest.raises(ValueError, match="^vae: got None"):
        found.checked()
    return dataclasses.replace(found, to_pixels=lambda grid: grid)


def test_it_samples_as_published(loaded):
    assert stored.module(loaded.config) == MODEL
    assert loaded.settings().guidance == stored.GUIDANCE and loaded.settings().ar_steps == 1


@pytest.mark.parametrize("guidance", [pytest.param(1.0, marks=pytest.mark.slow), 1.3])
def test_same_images_as_its_own_functions(loaded, guidance):
    made = loaded.sample(LABEL, SEED, guidance=guidance)
    keys = randomness.image_keys(np.uint32(SEED), np.arange(len(LABEL)))
    eps = randomness.normal(randomness.token_keys(keys, MODEL.num_tokens), 0, MODEL.token_dim)
    want = jax.jit(lambda p: sampling.samples(MODEL, p, LABEL, eps, guidance=guidance))(
        loaded.params
    )
    np.testing.assert_allclose(made.images.reshape(want.shape), want, atol=1e-4)
    cost = sampling.cost(guidance)
    classes = MODEL.num_classes + 1
    if cost.backbone_rows * len(LABEL) > classes:  # each class is then encoded once
        share = classes / len(LABEL)
        cost = dataclasses.replace(cost, backbone_calls=share, backbone_rows=share)
    assert dataclasses.asdict(made.counts) == dataclasses.asdict(cost)


def test_what_it_cannot_do_is_refused(loaded):
    for changes, words in (
        (dict(method="own"), "^method: got 'own', allowed drift | mean"),
        (dict(ar_steps=2), "^ar_steps: got 2, allowed 1"),
        (dict(guidance_form="trained"), "^guidance_form: got 'trained'"),
    ):
        with pytest.raises(ValueError, match=words):
            loaded.checked(**changes)
