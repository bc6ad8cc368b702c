"""Computing in bfloat16: the same loss up to rounding, parameters and entropy in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from driftar_jax.training import tasks


@pytest.mark.parametrize("name", ["host", pytest.param("drift", marks=pytest.mark.slow)])
def test_the_loss_is_that_of_float32_up_to_rounding(name):
    found = {}
    for dtype in ("float32", "bfloat16"):
        task = tasks.build(tiny.config(name, host__dtype=dtype), tiny.IMAGES)
        params = tiny.params(task.init)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
        loss, grads = jax.jit(
            jax.value_and_grad(
                lambda p, task=task: task.loss(p, tiny.batch(4), jax.random.key(0), 1, False)[0]
            )
        )(params)
        assert loss.dtype == jnp.float32
        found[dtype] = float(loss), np.concatenate([np.ravel(g) for g in jax.tree.leaves(grads)])
    (want, want_grad), (got, grad) = found["float32"], found["bfloat16"]
    assert got != want  # bfloat16 was really used
    np.testing.assert_allclose(got, want, rtol=0.03)
    cosine = grad @ want_grad / np.linalg.norm(grad) / np.linalg.norm(want_grad)
    assert cosine > 0.98
