"""The masked autoencoder, the vectors of its maps, and the loss summed over them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from driftar_jax.drift import feature_loss, laplace
from driftar_jax.drift.fields import Weights
from driftar_jax.features import mae
from driftar_jax.features import maps as features


def _shapes(side, channels, blocks):
    """Keys of phi and their shapes for one image; nothing is computed."""
    module = mae.MAE(channels, 5, 8, blocks)
    image = jnp.zeros((1, side, side, channels))
    phi = features.Maps(module, lambda tokens: tokens.reshape(image.shape))

    def run():
        params = module.init(jax.random.key(0), image)["params"]
        return phi(params, image.reshape(1, -1, channels))

    return {name: found.shape for name, found in jax.eval_shape(run).items()}


def test_published_sizes_give_the_published_vectors():
    """86 keys and 6734 vectors of each 32x32 latent (arXiv 2602.04770, appendix A.5)."""
    shapes = _shapes(32, 4, (3, 4, 6, 3))
    assert len(shapes) == 86 and sum(shape[1] for shape in shapes.values()) == 6734


@pytest.mark.parametrize(
    ("side", "channels", "sides"),
    [(28, 1, (28, 14, 7, 4)), (32, 3, (32, 16, 8, 4)), (16, 16, (16, 8, 4, 2))],
    ids=["images of 28", "images of 32", "latents of 16"],
)
def test_any_side_works(side, channels, sides):
    shapes = _shapes(side, channels, (1, 2, 1, 1))
    for stage, want in enumerate(sides):
        name, width = f"layer{stage + 1}", 8 * 2**stage
        assert shapes[name] == (1, want**2, width)
        assert shapes[f"{name}.std"] == (1, 1, width)
        for cell in (2, 4):
            assert (f"{name}.mean{cell}" in shapes) == (want % cell == 0)
            if want % cell == 0:
                assert shapes[f"{name}.std{cell}"] == (1, (want // cell) ** 2, width)
    assert shapes["layer2_blk2"] == shapes["layer2"]
    assert shapes["sample"] == (1, 1, side * side * channels) and shapes["norm"] == (1, 1, channels)


def test_statistics_are_those_of_a_plain_loop():
    m = np.asarray(tiny.normal(0, 3, 4, 8, 5), np.float64)
    found = jax.jit(features.statistics)({"m": jnp.asarray(m, jnp.float32)})
    found = jax.tree.map(np.asarray, found)
    assert len(found) == 7
    for r in range(3):
        np.testing.assert_allclose(found["m"][r, 8 * 2 + 3], m[r, 2, 3], rtol=1e-6)
        np.testing.assert_allclose(found["m.mean"][r, 0], m[r].mean(axis=(0, 1)), atol=1e-6)
        for side in (2, 4):
            across = 8 // side
            for i in range(4 // side):
                for j in range(across):
                    cell = m[r, i * side : (i + 1) * side, j * side : (j + 1) * side]
                    at = i * across + j
                    mean, std = found[f"m.mean{side}"][r, at], found[f"m.std{side}"][r, at]
                    np.testing.assert_allclose(mean, cell.mean(axis=(0, 1)), atol=1e-6)
                    want = np.sqrt(cell.var(axis=(0, 1)) + 1e-6)
                    np.testing.assert_allclose(std, want, rtol=1e-5)
    alone = jax.eval_shape(features.statistics, {"m": jnp.zeros((2, 1, 1, 3))})
    assert list(alone) == ["m", "m.mean"]


def test_rows_are_classes_and_vectors_and_samples_are_draws():
    classes, draws, positives, vectors, size = 2, 3, 4, 5, 6
    x = {"a": tiny.normal(1, classes, draws, vectors, size)}
    x["b"] = tiny.normal(2, classes, draws, 1, 2)
    y = {"a": tiny.normal(3, classes, positives, vectors, size)}
    y["b"] = tiny.normal(4, classes, positives, 1, 2)
    there = np.asarray([[True] * 4, [True, True, False, False]])
    loss = jax.jit(feature_loss.loss, static_argnums=0)
    total, info = loss("laplace", x, y, None, Weights(positives_present=there))
    want, strengths = 0.0, []
    for key in x:
        rows = [(c, v) for c in range(classes) for v in range(x[key].shape[2])]
        gen = np.stack([x[key][c, :, v] for c, v in rows])
        pos = np.stack([y[key][c, :, v] for c, v in rows])
        weights = Weights(positives_present=np.stack([there[c] for c, _ in rows]))
        each, call = jax.jit(laplace.laplace_loss)(gen, pos, None, weights)
        want += np.mean(each)
        strengths.append(call.strength)
    np.testing.assert_allclose(total, want, rtol=1e-5)
    np.testing.assert_allclose(info["strength"], np.mean(strengths, axis=0), rtol=1e-4)
    with pytest.raises(ValueError, match="drift.field: got 'mmd', allowed laplace | energy"):
        feature_loss.loss("mmd", x, y, None, Weights())


def test_penultimate_features_keep_distances_until_the_block():
    space = features.Penultimate(lambda params, h: h * params, (2, 3), width=7)
    project = jax.jit(space.projection, static_argnums=1)
    projection = np.asarray(project(jax.random.key(0), 4))
    np.testing.assert_allclose(projection @ projection.T, np.eye(4), atol=1e-5)
    tokens = tiny.normal(5, 2, 6, 4)
    params = {"projection": projection, "block": 2.0}
    found = np.asarray(jax.jit(lambda tokens: space(params, tokens)["block"])(tokens))
    assert found.shape == (2, 6, 7)
    apart = lambda t: np.linalg.norm(t[0] - t[1], axis=-1)  # noqa: E731
    np.testing.assert_allclose(apart(found), 2 * apart(tokens), rtol=1e-5)


def test_the_mask_hides_whole_patches():
    draw = jax.jit(mae.draw_mask, static_argnums=(1, 2))
    mask = np.asarray(draw(jax.random.key(1), (300, 5, 6), 0.4))
    assert mask.shape == (300, 5, 6)
    np.testing.assert_array_equal(mask[:, :4:2], mask[:, 1:5:2])
    np.testing.assert_array_equal(mask[:, :, ::2], mask[:, :, 1::2])
    np.testing.assert_allclose(mask.mean(), 0.4, atol=4 * np.sqrt(0.24 / 2700))


def test_the_reconstruction_loss_counts_masked_places_alone():
    made, image = tiny.normal(6, 2, 4, 6, 3), tiny.normal(7, 2, 4, 6, 3)
    mask = np.zeros((2, 4, 6), bool)
    mask[0, 1, 2] = mask[0, 3, 5] = True
    want = [np.square(np.asarray(made - image)[0][mask[0]]).sum() / 2, 0.0]
    found = jax.jit(mae.reconstruction_loss)(made, image, mask)
    np.testing.assert_allclose(found, want, rtol=1e-5)


def test_every_parameter_of_the_autoencoder_is_used():
    module = mae.MAE(channels=2, num_classes=3, width=4, blocks=(1, 1))
    image = tiny.normal(8, 2, 4, 6, 2)
    params = tiny.params(module.init, image)["params"]

    @functools.partial(jax.jit)
    def gradient(params):
        def loss(params):
            made, logits = module.apply({"params": params}, image)
            return jnp.square(made).sum() + jnp.square(logits).sum()

        return jax.grad(loss)(params)

    made = jax.eval_shape(lambda: module.apply({"params": params}, image))
    assert [m.shape for m in made] == [(2, 4, 6, 2), (2, 3)]
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(params)):
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


def test_a_patch_in_the_channels_keeps_every_pixel_in_its_place():
    image = tiny.normal(0, 2, 4, 6, 3)
    folded = mae.fold(image, 2)
    assert folded.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(folded[1, 1, 2], image[1, 2:4, 4:6].reshape(-1))
    np.testing.assert_array_equal(mae.spread(folded, 2), image)


def test_patches_shrink_the_maps_and_not_the_image():
    module = mae.MAE(channels=3, num_classes=5, width=4, blocks=(1, 1), patch=2)
    image = jnp.zeros((2, 4, 6, 3))
    (made, logits), variables = jax.eval_shape(module.init_with_output, jax.random.key(0), image)
    assert made.shape == image.shape and logits.shape == (2, 5)
    maps = jax.eval_shape(lambda v: module.apply(v, image, method="maps"), variables)
    assert maps["conv1"].shape == (2, 2, 3, 4) and maps["layer2"].shape == (2, 1, 2, 8)
