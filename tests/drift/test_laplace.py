"""The field `laplace` and its units: signs, scale, missing samples, devices; both grid losses."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sharded_drift
import tiny

from driftar_jax.drift import fields, laplace
from driftar_jax.drift.fields import Weights

B, G, P, M, S = 3, 4, 5, 2, 6
LOSSES = {
    "laplace": jax.jit(laplace.laplace_loss, static_argnames="block_bytes"),
    "energy": jax.jit(laplace.energy_loss, static_argnames="block_bytes"),
}
energy, laplace_field = jax.jit(fields.energy), jax.jit(laplace.laplace)


@pytest.fixture(scope="module")
def samples():
    return tiny.normal(0, B, G, S), 0.5 + tiny.normal(1, B, P, S), tiny.normal(2, B, M, S)


def test_swapping_data_and_samples_flips_the_sign(samples):
    """Exact but for rounding where the draws weigh nothing: only they are masked and floored."""
    x, positives, negatives = samples
    silent = Weights(draws=jnp.zeros((B, G)))
    forth = laplace_field(x, positives, negatives, silent)
    back = laplace_field(x, negatives, positives, silent)
    assert np.abs(forth).max() > 0.1
    np.testing.assert_allclose(back, -np.asarray(forth), atol=2e-5)
    # With their own weight they are negatives that the exchange does not reach.
    heard = [laplace_field(x, *both) for both in ((positives, negatives), (negatives, positives))]
    assert np.abs(np.add(*heard)).max() > 0.1


def test_the_weighted_energy_field_is_the_plain_one(samples):
    x, positives, negatives = samples
    silent = Weights(draws=jnp.zeros((B, G)))
    found = energy(x, positives, negatives, silent)
    np.testing.assert_allclose(found, energy(x, positives, negatives), atol=1e-6)
    found = energy(x, positives, None, Weights())
    np.testing.assert_allclose(found, energy(x, positives), atol=1e-6)
    # Three times the weight is three copies of a sample.
    triple = Weights(negatives=jnp.full((B, M), 3.0))
    copies = jnp.concatenate([negatives] * 3, axis=1)
    np.testing.assert_allclose(
        energy(x, positives, negatives, triple),
        energy(x, positives, copies, Weights()),
        atol=1e-6,
    )


def test_equal_points_have_no_direction_in_the_weighted_energy_field():
    x = tiny.normal(3, B, G, S)
    found = energy(x, x[:, :1], None, Weights(draws=jnp.zeros((B, G))))
    np.testing.assert_array_equal(found[:, 0], np.zeros((B, S)))


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_does_not_know_the_scale(samples, name):
    x, positives, negatives = samples
    loss = LOSSES[name]
    rows, info = loss(x, positives, negatives)
    large, large_info = loss(1000 * x, 1000 * positives, 1000 * negatives)
    np.testing.assert_allclose(large, rows, rtol=2e-3)
    np.testing.assert_allclose(large_info.strength, info.strength, rtol=2e-3)
    np.testing.assert_allclose(large_info.scale, 1000 * info.scale, rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_a_missing_sample_is_in_nothing(samples, name):
    """Whatever stands in its place, the call is that of the samples that are there."""
    x, positives, negatives = samples
    want, info = LOSSES[name](x, positives[:, :3], negatives[:, :1])
    for junk in (0.0, 50.0):
        there, also = (np.broadcast_to(np.arange(n) < k, (B, n)) for n, k in ((P, 3), (M, 1)))
        rows, found = LOSSES[name](
            x,
            np.where(there[..., None], positives, junk),
            np.where(also[..., None], negatives, -junk),
            Weights(positives_present=there, negatives_present=also),
        )
        np.testing.assert_allclose(rows, want, rtol=1e-4)
        np.testing.assert_allclose(found.strength, info.strength, rtol=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_a_call_without_data_is_finite(samples, name):
    x, positives, _ = samples
    none = Weights(positives_present=jnp.zeros((B, P), bool))
    rows, info = LOSSES[name](x, positives, None, none)
    assert np.isfinite(rows).all() and np.isfinite(info.strength).all()


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_the_field_in_units_of_the_mean_distance(samples, name):
    x, positives, negatives = samples

    def loss(x):
        rows, info = LOSSES[name](x, positives, negatives)
        return rows.mean(), info

    found, info = jax.jit(jax.grad(loss, has_aux=True))(x)
    if name == "laplace":
        force, unit, _ = laplace.force(x, positives, negatives)
        want = -2 * force / (unit * B * G * S)
    else:
        want = -2 * energy(x, positives, negatives, Weights()) / (info.scale * B * G)
    np.testing.assert_allclose(found, want, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("block_bytes", [1, 2 * 4 * G * (G + P + M)], ids=["rows", "pairs"])
def test_blocks_of_rows_give_the_same(samples, name, block_bytes):
    want, info = LOSSES[name](*samples)
    rows, found = LOSSES[name](*samples, block_bytes=block_bytes)
    np.testing.assert_allclose(rows, want, rtol=1e-5)
    np.testing.assert_allclose(found.strength, info.strength, rtol=1e-5)


def test_blocks_bound_the_memory():
    shapes = [jax.ShapeDtypeStruct((64, n, 2), jnp.float32) for n in (16, 48)]
    matrix = 64 * 16 * 64 * 4

    def held(block_bytes):
        loss = functools.partial(laplace.laplace_loss, block_bytes=block_bytes)
        return jax.jit(loss).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    assert held(matrix) > 4 * matrix > matrix > held(matrix // 16)


def test_wrong_arguments_are_refused(samples):
    x, positives, _ = samples
    with pytest.raises(ValueError, match=r"positives: got shape \(3, 5\), allowed \[B, samples"):
        laplace.force(x, positives[..., 0])
    with pytest.raises(ValueError, match="block_bytes: got 0, allowed at least 1"):
        laplace.laplace_loss(x, positives, block_bytes=0)
    with pytest.raises(ValueError, match=r"widths: got \(\), allowed at least one"):
        laplace.laplace(x, positives, widths=())


@pytest.mark.timeout(300)
def test_eight_devices_share_the_means_of_a_call(python):
    """Rows are ten times as large on half of the devices, so means of a device would show."""
    done = python("tests/sharded_drift.py", devices=8)
    assert done.returncode == 0, done.stderr[-2000:]
    many, one = json.loads(done.stdout), sharded_drift.losses()
    assert many.pop("devices") == 8 and one.pop("devices") == 1
    for name, values in one.items():
        np.testing.assert_allclose(many[name], values, rtol=2e-5, err_msg=name)
