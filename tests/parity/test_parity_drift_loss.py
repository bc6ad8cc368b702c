"""The field `laplace` against recorded arrays of the official drifting loss, every case of it."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import claims, load, uncovered

from driftar_jax.drift import laplace
from driftar_jax.drift.fields import Weights

CASE = load("drift_loss")
# Shares of the recorded size to which a case is to be compared; parity/README says why.
RELATIVE = {"e_gen_equals_pos": 1e-2}


def each(name: str, values: list[str]):
    """Parametrises over recordings; the case's name stands in the test id."""
    return pytest.mark.parametrize(name, values, ids=[f"drift_loss-{v}" for v in values])


@functools.cache
def computed(call: str, block_bytes: int = laplace.BLOCK_BYTES):
    """Loss, info and gradient of one recorded call."""
    recorded = {n: jnp.asarray(CASE[f"in.{call}.{n}"]) for n in inputs(call)}
    widths = tuple(float(r) for r in CASE[f"in.{call}.R_list"])
    weights = Weights(
        draws=recorded.get("weight_gen"),
        positives=recorded.get("weight_pos"),
        negatives=recorded.get("weight_neg"),
    )

    @jax.jit
    def gradient(gen):
        def mean_loss(gen):
            rows, info = laplace.laplace_loss(
                gen,
                recorded["pos"],
                recorded.get("neg"),
                weights,
                widths=widths,
                block_bytes=block_bytes,
            )
            return rows.mean(), (rows, info)

        return jax.value_and_grad(mean_loss, has_aux=True)(gen)

    (_, (rows, info)), grad = gradient(recorded["gen"])
    return rows, info.scale, dict(zip(widths, info.strength, strict=True)), grad


def inputs(call: str) -> list[str]:
    """Recorded inputs of a call; reading them counts as covering them."""
    return [n.removeprefix(f"in.{call}.") for n in CASE.names if n.startswith(f"in.{call}.")]


def close(got, name: str, call: str) -> None:
    """`cases.Case.close`, or the looser bound of a case that rounding decides."""
    if call not in RELATIVE:
        CASE.close(got, name)
        return
    want = CASE[name]
    np.testing.assert_allclose(
        got, want, rtol=0, atol=RELATIVE[call] * np.abs(want).max(), err_msg=name
    )


def compare(call: str, found) -> None:
    rows, scale, strength, grad = found
    close(scale, f"out.{call}.info.scale", call)
    for name in CASE.names:
        if name.startswith(f"out.{call}.info.loss_"):
            # The name holds the width as its writer printed it: 1, 1.0 and 1e0 are one width.
            named = float(name.removeprefix(f"out.{call}.info.loss_"))
            width = min(strength, key=lambda r: abs(r - named))
            assert width == pytest.approx(named, rel=1e-6)
            close(strength[width], name, call)
    if f"out.{call}.loss" in CASE.names:
        close(rows, f"out.{call}.loss", call)
        close(grad, f"out.{call}.grad_gen", call)


@pytest.mark.parametrize("case", ["drift_loss"])
def test_every_array_is_covered(case):
    assert uncovered(load(case), sys.modules[__name__]) == []


@each("call", CASE.parts("in."))
@claims("drift_loss", "in.{call}.*", "out.{call}.*")
def test_loss_info_and_gradient(call):
    for name in [*inputs(call)]:
        assert np.isfinite(CASE[f"in.{call}.{name}"]).all()
    compare(call, computed(call))


@each("call", [c for c in CASE.parts("in.") if len(CASE[f"in.{c}.gen"]) > 1])
def test_blocks_of_one_row_give_the_recorded_numbers(call):
    compare(call, computed(call, block_bytes=1))
