"""TransDiff with its own head: what a loss term may see, and generation against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from driftar_jax.heads.flow import VelocityNet, flow_sample
from driftar_jax.hosts.transdiff import TransDiff, class_table
from driftar_jax.hosts.transdiff_flow import flow_terms, generate, reference_rows

SHAPE = (2, 4)
SIZES = dict(num_classes=3, width=8, depth=2, num_heads=2, buffer_size=2)
NET = VelocityNet(token_dim=3, num_tokens=8, width=8, depth=1, num_heads=2)
ONE = TransDiff(num_rows=8, groups=1, reference_dim=3, **SIZES)
# Three images in a row, 2x2 tokens behind a row.
ROW = TransDiff(num_rows=6, groups=3, reference_dim=12, **SIZES)
LABEL = jnp.array([2, 0])


def params_of(host):
    z = jnp.zeros((1, host.group_rows, host.width))
    return {
        "host": tiny.params(host.init, LABEL)["params"],
        "head": tiny.params(NET.init, jnp.zeros((1, 8, 3)), jnp.zeros(1), z, seed=1)["params"],
    }


def test_reference_rows_hold_the_numbers_of_square_patches():
    grids = jnp.arange(2 * 8 * 3.0).reshape(2, 8, 3)
    rows = reference_rows(grids, SHAPE, 2)
    assert rows.shape == (2, 2, 12)
    # Tokens 0, 1, 4, 5 are the left square; the channel is the slowest inside a row.
    np.testing.assert_array_equal(rows[1, 0], grids[1, jnp.array([0, 1, 4, 5])].T.reshape(-1))
    np.testing.assert_array_equal(reference_rows(grids, SHAPE, 8), grids)


@pytest.mark.parametrize(("shape", "rows"), [(SHAPE, 3), (SHAPE, 4), ((2, 3), 2), (SHAPE, 16)])
def test_rows_that_are_no_square_patches_are_refused(shape, rows):
    with pytest.raises(ValueError, match=f"^rows: got {rows}, allowed 8 over a square"):
        reference_rows(jnp.zeros((8, 3)), shape, rows)


def test_a_term_sees_its_image_and_those_before_it():
    params = params_of(ROW)
    u, noise = jnp.full((3, 2), 0.6), tiny.normal(1, 3, 2, 8, 3)

    @jax.jit
    @jax.jacobian
    def slope(grids):
        losses, _ = flow_terms(ROW, NET, params, LABEL, grids, u, noise, shape=SHAPE)
        return losses.mean(axis=1)

    # [term, image of the row]
    seen = np.abs(slope(tiny.normal(0, 2, 3, 8, 3))).max(axis=(1, 3, 4)) > 1e-7
    np.testing.assert_array_equal(seen, np.tril(np.ones((3, 3), bool)))


def test_copies_are_whole_batches_one_after_another():
    params, grids = params_of(ONE), tiny.normal(0, 2, 1, 8, 3)
    u, noise = jnp.array([[0.2, 0.9, 0.5, 0.7]]), tiny.normal(1, 1, 4, 8, 3)

    @jax.jit
    def losses(label, grids, u, noise):
        return flow_terms(ONE, NET, params, label, grids, u, noise, shape=SHAPE)[0][0]

    together = losses(LABEL, grids, u, noise)
    for row in range(4):
        image = slice(row % 2, row % 2 + 1)
        alone = losses(LABEL[image], grids[image], u[:, row : row + 1], noise[:, row : row + 1])
        np.testing.assert_allclose(together[row], alone[0], rtol=1e-4)


def test_losses_name_wrong_shapes():
    params, u, noise = params_of(ONE), jnp.zeros((1, 2)), jnp.zeros((1, 2, 8, 3))
    with pytest.raises(ValueError, match="^grids: got shape"):
        flow_terms(ONE, NET, params, LABEL, jnp.zeros((2, 2, 8, 3)), u, noise, shape=SHAPE)
    with pytest.raises(ValueError, match="^noise: got shape"):
        grids = jnp.zeros((2, 1, 8, 3))
        flow_terms(ONE, NET, params, LABEL, grids, u, noise[:, :1], shape=SHAPE)


def test_generation_against_whole_prefixes():
    """Every step encodes all images so far anew, as the official program does."""
    params, start = params_of(ROW), tiny.normal(2, 2, 8, 3)
    noises = jnp.asarray(tiny.normal(3, 3, 2, 2, 8, 3))
    guidance = (1.0, 1.5, 2.0)  # the unguided first image is encoded without class all the same

    @jax.jit
    def both(params):
        made = generate(
            ROW,
            NET,
            params,
            LABEL,
            start,
            lambda g, step: noises[g, step],
            shape=SHAPE,
            steps=(3, 2, 3),
            guidance=guidance,
        )
        grids, references = [], None
        for g, scale in enumerate(guidance):
            encode = lambda label, r=references: ROW.apply({"params": params["host"]}, label, r).z  # noqa: E731
            free = encode(jnp.full_like(LABEL, -1)) if scale != 1.0 else None
            grid = flow_sample(
                NET,
                params["head"],
                encode(LABEL),
                start,
                lambda step, g=g: noises[g, step],
                steps=(3, 2, 3)[g],
                guidance=None if scale == 1.0 else scale,
                c_uncond=free,
            )
            grids.append(grid)
            references = reference_rows(jnp.stack(grids, axis=1), SHAPE, 2)
        return made, jnp.stack(grids)

    made, want = both(params)
    assert made.shape == (3, 2, 8, 3)
    np.testing.assert_allclose(made, want, atol=1e-4)


def test_the_table_of_classes_takes_the_place_of_the_backbone():
    params, start = params_of(ONE), tiny.normal(2, 2, 8, 3)
    noises = jnp.asarray(tiny.normal(3, 1, 2, 8, 3))

    @jax.jit
    def run(params, table):
        return generate(
            ONE,
            NET,
            params,
            LABEL,
            start,
            lambda g, step: noises[step],
            shape=SHAPE,
            steps=(2,),
            guidance=(1.5,),
            table=table,
        )

    table = jax.jit(lambda p: class_table(ONE, p, batch=2))(params["host"])
    np.testing.assert_allclose(run(params, table), run(params, None), atol=1e-4)
    spoilt = {**params, "host": jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), params["host"])}
    assert np.isfinite(run(spoilt, table)).all()


def test_generation_needs_a_setting_for_every_group():
    params, start = params_of(ROW), tiny.normal(2, 2, 8, 3)
    for wrong in (dict(steps=(2, 2)), dict(guidance=(1.0,))):
        given = {"steps": (2, 2, 2), "guidance": (1.0, 1.0, 1.0), **wrong}
        with pytest.raises(ValueError, match=f"^{next(iter(wrong))}: got"):
            generate(ROW, NET, params, LABEL, start, lambda g, s: start, shape=SHAPE, **given)
