"""Many draws of the same tokens: what a head says in contexts that no model was trained on.

For hosts that fill masked tokens. Runs with other backbones meet in the context: its tokens are the
same for all of them, and each reads it with its own backbone.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from driftar_jax import seeds
from driftar_jax.data.pixels import patchify, to_unit_range
from driftar_jax.drift import fields, spread
from driftar_jax.heads import randomness
from driftar_jax.sampling import plain
from driftar_jax.sampling.generator import Generator
from driftar_jax.types import Encoding

# Draws of a call; its arrays are this many tokens long.
ROWS = 16_384


@dataclasses.dataclass(frozen=True)
class Contexts:
    """Real images of which a part is known, and the unknown tokens that are asked for.

    Attributes:
      tokens: `[n, N, C]` float32.
      known: `[n, N]` bool.
      label: `[n]` int32.
      positions: `[n, M]` int32, all unknown.
    """

    tokens: np.ndarray
    known: np.ndarray
    label: np.ndarray
    positions: np.ndarray

    @property
    def targets(self) -> np.ndarray:
        """Return the real tokens `[n, M, C]` at `positions`."""
        return np.take_along_axis(self.tokens, self.positions[..., None], axis=1)


def possible(loaded: Generator) -> bool:
    """Say whether a checkpoint has such contexts."""
    return loaded.model.family.order == "any"


def of_generation(
    images: np.ndarray, labels: np.ndarray, patch_size: int, *, per_image: int, seed: int = 0
) -> Contexts:
    """Draw contexts that sampling meets: a share `cos(pi/2 u)` of the tokens is unknown, u uniform.

    Args:
      images: uint8 `[n, H, W, C]`, or the grids of their tokens, float32 `[n, h, w, c]`.
      labels: `[n]`.
      patch_size: of the tokens.
      per_image: M, 1..N; so many tokens are unknown at least.
      seed: of masks and positions.
    """
    grid = jnp.asarray(images)
    grid = to_unit_range(grid) if grid.dtype == jnp.uint8 else grid
    tokens = np.asarray(patchify(grid, patch_size))
    rng = np.random.default_rng(seed)
    n, num_tokens = tokens.shape[:2]
    order = np.argsort(rng.random((n, num_tokens)), axis=1)
    unknown = np.ceil(num_tokens * np.cos(0.5 * np.pi * rng.random(n))).astype(np.int64)
    # At least M, for M unknown tokens of every image are asked for.
    unknown = np.clip(unknown, per_image, num_tokens)
    known = np.argsort(order, axis=1) >= unknown[:, None]
    # The order is random, so that its first positions are a fair choice of the unknown ones.
    return Contexts(tokens, known, np.asarray(labels, np.int32), order[:, :per_image])


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Draws `x [n, M, G, C]`, and the entropy `[n, M]` of their tokens in the run's own eyes."""

    x: np.ndarray
    entropy: np.ndarray


def draw(loaded: Generator, contexts: Contexts, count: int, seed: int, **changes: Any) -> Drawn:
    """Draw `count` times every token that is asked for, without guidance, at temperature 1.

    Args:
      loaded: a run of a host that fills masked tokens.
      contexts: n of them.
      count: G.
      seed: of the noise; it decides all of it, whatever else is drawn.
      changes: of the sampling settings.
    """
    settings = loaded.checked(**{"guidance": 1.0, "temperature": 1.0, "gamma": 0, **changes})
    n, per_image = contexts.positions.shape
    size = max(1, min(n, ROWS // (per_image * count)))
    parts = []
    for first in range(0, n, size):
        index = np.arange(first, first + size, dtype=np.int32)
        at = np.minimum(index, n - 1)  # the last call is padded
        rows = (a[at] for a in (contexts.tokens, contexts.known, contexts.label))
        arguments = loaded.params, *rows, contexts.positions[at], index, seeds.argument(seed)
        results = _draw(loaded.model, settings, count, *arguments)
        parts.append([np.asarray(a)[: n - first] for a in results])
    return Drawn(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _draw(model, settings, count, params, tokens, known, label, positions, index, seed):
    encoding = model.family.known_encoding(model, params, tokens, known, label)
    keys = randomness.image_keys(seed, index)
    take = jax.vmap(lambda values, at: values[at])
    z, entropy = take(encoding.z, positions), take(encoding.entropy, positions)
    token_keys = take(randomness.token_keys(keys, tokens.shape[1]), positions)
    each = jax.vmap(jax.random.fold_in, (None, 0))
    # A key for every draw `[B, M, G]`: draw g of a token is the same whatever G is.
    drawn = jax.vmap(jax.vmap(each, (0, None)), (0, None))(token_keys, jnp.arange(count))
    channels = tokens.shape[2]
    head = plain.one_step_head(model, settings, params)
    if head is None:
        shape = (*drawn.shape, z.shape[-1])
        x = model.family.own_draws(
            model,
            settings,
            params,
            jnp.broadcast_to(z[:, :, None], shape).reshape(-1, shape[-1]),
            lambda step: randomness.normal(drawn.reshape(-1), step, channels),
        )
        return x.reshape(*drawn.shape, channels), entropy
    prior = (take(a, positions) for a in head.starts(encoding, randomness.prior_keys(keys)))
    at_positions, eps = Encoding(z=z, entropy=entropy), randomness.normal(drawn, 0, channels)
    one = functools.partial(head.tokens, at_positions, *prior, scale=jnp.float32(1))
    # The encoding is shared by all draws of a token; only the noise has the axis G.
    return jax.vmap(lambda e: one(eps=e), in_axes=2, out_axes=2)(eps), entropy


def energy_score(drawn: Drawn, contexts: Contexts) -> float:
    """Return the mean energy score of the draws against what really was there; lower is better."""
    score = fields.energy_score(jnp.asarray(drawn.x), jnp.asarray(contexts.targets))
    return float(score.mean())


@dataclasses.dataclass(frozen=True)
class Score:
    """What draws in held-out contexts say of a head.

    Attributes:
      energy_score: lower is better.
      spread_to_error: of each band of directions, the coarse ones first (`drift/spread.py`).
      contexts, draws: how many tokens were asked for, and how often each was drawn.
    """

    energy_score: float
    spread_to_error: tuple[float, ...]
    contexts: int
    draws: int

    def line(self) -> str:
        """Return it for a reader."""
        bands = ", ".join(f"{ratio:.2f}" for ratio in self.spread_to_error)
        return (
            f"held-out energy score {self.energy_score:.4f}, spread over error {bands} "
            f"(coarse to fine; 1 is right; {self.contexts} contexts)"
        )


def score(loaded: Generator, contexts: Contexts, draws: int) -> Score:
    """Draw every token that is asked for `draws` times, and say how good the draws are."""
    drawn = draw(loaded, contexts, draws, seed=0)
    basis = spread.directions(contexts.tokens)
    return Score(
        energy_score(drawn, contexts),
        spread.to_error(drawn.x, contexts.targets, basis),
        contexts.positions.size,
        draws,
    )
