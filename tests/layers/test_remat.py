"""Activations that are made again: the same gradients and names, less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import linen as nn

from driftar_jax.heads.flow import VelocityNet
from driftar_jax.hosts.mar import MAR
from driftar_jax.hosts.transdiff import TransDiff
from driftar_jax.layers.blocks import REMAT

B, N, C = 2, 6, 3
LABEL = jnp.array([1, -1])
MODULES = {
    "mar": functools.partial(MAR, N, C, 3, 8, 1, 2, 2, 2),
    "transdiff": functools.partial(TransDiff, N, 2, C, 3, 8, 2, 2, 2),
    "flow": functools.partial(VelocityNet, C, N, 8, 2, 2),
}
GIVEN = {
    "mar": (tiny.normal(0, B, N, C), jnp.arange(N)[None] < jnp.array([[2], [5]]), LABEL),
    "transdiff": (LABEL, tiny.normal(1, B, 1, N // 2, C)),
    "flow": (tiny.normal(2, B, N, C), jnp.array([100, 900]), tiny.normal(3, B, 4, 5)),
}


def _gradient(name, remat):
    module = MODULES[name](remat=remat)

    def total(params):
        made = module.apply({"params": params}, *GIVEN[name])
        return sum(jnp.sum(jnp.square(a)) for a in jax.tree.leaves(made))

    return module, jax.value_and_grad(total)


@pytest.mark.slow  # three gradients of each; dropout below goes through the same blocks
@pytest.mark.parametrize("name", MODULES)
def test_gradients_are_those_of_kept_activations(name):
    module, plain = _gradient(name, "none")
    params = tiny.params(lambda key: module.init(key, *GIVEN[name])["params"])
    again = {remat: _gradient(name, remat)[1] for remat in REMAT}
    made = jax.jit(lambda p: (plain(p), [f(p) for f in again.values()]))(params)
    for found in made[1]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, made[0]
        )
    text = str(jax.make_jaxpr(again["full"])(params))
    assert text.count("prevent_cse") >= 2
    other = MODULES[name](remat="full").init
    shapes = jax.eval_shape(lambda: nn.unbox(other(jax.random.key(0), *GIVEN[name]))["params"])
    assert jax.tree.structure(shapes) == jax.tree.structure(params)


@pytest.mark.slow  # the others have gradients
def test_dropout_is_made_again_as_it_was():
    params = tiny.params(lambda key: MODULES["mar"]().init(key, *GIVEN["mar"])["params"])
    shift = jax.tree.map(lambda a: 1e-2 * np.sign(a), params)

    def total(params):
        module = MODULES["mar"](remat="full", attention_dropout=0.4, projection_dropout=0.4)
        key = {"dropout": jax.random.key(0)}
        made = module.apply({"params": params}, *GIVEN["mar"], deterministic=False, rngs=key)
        return jnp.sum(made.z[..., 0])

    @jax.jit
    def both(params, shift):
        return jax.jvp(total, (params,), (shift,))[1], jax.grad(total)(params)

    # The slope comes from one forward pass, the gradient from two.
    slope, grads = jax.tree.map(np.asarray, both(params, shift))
    want = sum(np.sum(a * b) for a, b in zip(*map(jax.tree.leaves, (grads, shift)), strict=True))
    np.testing.assert_allclose(want, slope, rtol=1e-3)


def test_an_unknown_policy_is_named():
    with pytest.raises(ValueError, match="^host.remat: got 'some', allowed none | dots | full"):
        jax.eval_shape(MODULES["mar"](remat="some").init, jax.random.key(0), *GIVEN["mar"])
