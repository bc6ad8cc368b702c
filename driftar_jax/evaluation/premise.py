"""Does entropy predict error? Rank correlation of `E` and the residual `|x - mu|`."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from driftar_jax import seeds
from driftar_jax.data.pixels import patchify, to_unit_range
from driftar_jax.hosts.base import Model

# A probe this stiff changes nothing visible, and keeps the normal equations solvable.
RIDGE = 1e-3


@dataclasses.dataclass(frozen=True)
class Premise:
    """At a fixed number of unknown tokens, so that the mask rate cannot fake a correlation.

    Attributes:
      num_unknown: of all N tokens.
      correlation: Spearman's, of `E` and `|x - mu|` over unknown tokens.
      entropy, residual: the pairs, `[n * num_unknown]`.
    """

    num_unknown: int
    correlation: float
    entropy: np.ndarray
    residual: np.ndarray


@functools.partial(jax.jit, static_argnums=0)
def _encode(model: Model, params, tokens, known, condition):
    encoding = model.family.known_encoding(model, params, tokens, known, condition)
    if model.prior is None:
        return encoding, None
    # Read by the control `shuffled` alone, whose mean does not depend on them: mu is all that is
    # used.
    keys = jax.random.split(seeds.key(0), tokens.shape[0])
    variables = {"params": params["prior"]}
    return encoding, model.prior.apply(variables, encoding.z, encoding.entropy, keys)[0]


def sees_tokens(model: Model) -> bool:
    """Say whether contexts hold tokens; a host that makes whole grids knows the class alone."""
    return model.family.order != "grid"


def reads_in_turn(model: Model) -> bool:
    """Say whether a token's context is all tokens before it, whatever a mask says."""
    return model.family.order == "raster"


def measurable(model: Model) -> bool:
    """Say whether the host computes one entropy per token (not one per square of tokens)."""
    return model.family.has_token_entropy(model)


def measure(
    model: Model, params, images: np.ndarray, condition: Any, *, seed: int = 0
) -> list[Premise]:
    """Measure the correlations with all, three quarters, half and a quarter of the tokens unknown.

    A host that makes whole grids has the first of these alone; one that reads tokens in turn has
    the others, each of the one token that comes then.

    Where the checkpoint has no prior, `mu` is a linear probe fitted on half of the images and used
    on the other half.

    Args:
      model, params: a host or Drift-AR checkpoint.
      images: real images, at least 16: uint8 `[n, H, W, C]`, or the grids of their tokens, float32
        `[n, h, w, c]` (`inpaint.grids`).
      condition: what they are (`Reader.of_real`), leaves `[n, ...]`.
      seed: of the masks.

    Returns:
      One `Premise` per mask rate, most unknown first.
    """
    spec = model.images
    tokens = _tokens(images, spec.patch_size)
    if reads_in_turn(model):
        return _in_turn(model, params, tokens, condition)
    rng = np.random.default_rng(seed)
    order = np.argsort(rng.random((len(images), spec.num_tokens)), axis=1)
    premises = []
    for quarters in (4, 3, 2, 1) if sees_tokens(model) else (4,):
        count = max(1, spec.num_tokens * quarters // 4)
        known = np.argsort(order, axis=1) >= count
        encoding, mu = _encode(model, params, tokens, jnp.asarray(known), condition)
        z, x, e = (np.asarray(a, np.float64) for a in (encoding.z, tokens, encoding.entropy))
        # A probe must not be judged on the images that it was fitted on.
        held_out = np.arange(len(images)) >= (0 if mu is not None else len(images) // 2)
        if mu is None:
            mu = _probe(z, x, ~known & ~held_out[:, None])
        chosen = ~known & held_out[:, None]
        residual = np.linalg.norm(x - np.asarray(mu, np.float64), axis=-1)[chosen]
        pairs = e[chosen], residual
        premises.append(Premise(count, float(stats.spearmanr(*pairs).statistic), *pairs))
    return premises


def _in_turn(model: Model, params, tokens, condition) -> list[Premise]:
    encoding, mu = _encode(model, params, tokens, None, condition)
    z, x, e = (np.asarray(a, np.float64) for a in (encoding.z, tokens, encoding.entropy))
    held_out = np.arange(len(x)) >= (0 if mu is not None else len(x) // 2)
    if mu is None:
        mu = _probe(z, x, np.broadcast_to(~held_out[:, None], x.shape[:2]))
    residual = np.linalg.norm(x - np.asarray(mu, np.float64), axis=-1)
    premises, num_tokens = [], x.shape[1]
    # A token with fewer than two before it has no entropy: there is nothing to choose among.
    counts = (num_tokens * quarters // 4 for quarters in (3, 2, 1))
    for count in (n for n in counts if n <= num_tokens - 2):
        # With `count` tokens unknown, the one that comes next stands `count` places before the end.
        pairs = e[held_out, -count], residual[held_out, -count]
        premises.append(Premise(count, float(stats.spearmanr(*pairs).statistic), *pairs))
    return premises


def entropies(model: Model, params, images, condition, known) -> np.ndarray:
    """Return `E [n, N]` of real images, as for `measure`, of which tokens `known [n, N]` stand."""
    tokens = _tokens(images, model.images.patch_size)
    encoding, _ = _encode(model, params, tokens, jnp.asarray(known), condition)
    return np.asarray(encoding.entropy)


def _tokens(images, patch_size: int) -> jax.Array:
    grid = jnp.asarray(images)
    return patchify(to_unit_range(grid) if grid.dtype == jnp.uint8 else grid, patch_size)


def _probe(z: np.ndarray, x: np.ndarray, fit: np.ndarray) -> np.ndarray:
    """Ridge regression of tokens on features, fitted where `fit`; predictions everywhere."""
    # A column of ones for the bias: tokens do not have mean 0 in every context.
    design = np.concatenate([z, np.ones((*z.shape[:2], 1))], axis=-1)
    a, b = design[fit], x[fit]
    gram = a.T @ a + RIDGE * len(a) * np.eye(a.shape[1])
    return design @ np.linalg.solve(gram, a.T @ b)
