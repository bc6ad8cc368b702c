"""Plain generation for causal hosts: one token at a time, their own head, one jitted function.

The prompt is read in one call, and every token but the last costs one cached call; the branches of
guidance are rows of the same call. What is decoded is also what is fed back.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from driftar_jax.heads import flow_token, randomness
from driftar_jax.hosts import nextstep
from driftar_jax.types import Counts, Encoding


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to sample. Static: one compilation per value.

    Attributes:
      grid: rows and columns of tokens.
      nfe: head evaluations per token.
      shift: of the head's times; above 1 spends more evaluations near the noise.
      guidance: scale of the text, 1 (one branch) or more.
      guidance_image: scale of the source image, 1 or more; above 1 needs `guidance` above 1.
      guidance_schedule: `constant`, `linear` (falls) or `rising` over the tokens.
      normalise: project each token to mean 0 and standard deviation 1.
      corrected: end the head's times at 1, where the published shifted grid stops short.
    """

    grid: tuple[int, int]
    nfe: int = 28
    shift: float = 1.0
    guidance: float = 7.5
    guidance_image: float = 1.0
    guidance_schedule: str = "constant"
    normalise: bool = False
    corrected: bool = False

    def check(self) -> None:
        """Raises ValueError (field, value, allowed) where nothing can be sampled so."""
        if min(self.grid) < 1:
            raise ValueError(f"grid: got {self.grid}, allowed at least one row and column")
        if self.nfe < 1:
            raise ValueError(f"nfe: got {self.nfe}, allowed a whole number of at least 1")
        if not 0 < self.shift < math.inf:
            raise ValueError(f"shift: got {self.shift}, allowed a number above 0")
        for field in ("guidance", "guidance_image"):
            value = getattr(self, field)
            if not 1 <= value < math.inf:
                raise ValueError(
                    f"{field}: got {value}, allowed 1 (none) or more: below 1 it is no guidance, "
                    "and the published program pairs the wrong rows"
                )
        if self.guidance_image > 1 and self.guidance == 1:
            raise ValueError(
                f"guidance_image: got {self.guidance_image}, allowed 1 while guidance is 1: the "
                "image-only branch lies between the conditional and the unconditional one"
            )
        if self.guidance_schedule not in nextstep.GUIDANCE_SCHEDULES:
            allowed = " | ".join(nextstep.GUIDANCE_SCHEDULES)
            raise ValueError(
                f"guidance_schedule: got {self.guidance_schedule!r}, allowed {allowed}"
            )

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def branches(self) -> int:
        """Rows per image: conditional; and none; and, between them, image only."""
        return 1 + (self.guidance > 1) + (self.guidance_image > 1)


class Generated(NamedTuple):
    """Tokens `[n, N, C]` float32 in raster order, `E [n, N]` of the conditional rows, costs."""

    tokens: jax.Array
    entropy: jax.Array
    counts: Counts


def own_noise(index: jax.Array, seed: jax.Array, num_tokens: int, channels: int):
    """Noise that is a function of seed, image, token and draw alone, as `draws` makes it.

    Args:
      index: `[n]` int32, number of each image in the whole request.
      seed: uint32 scalar.
      num_tokens: N.
      channels: C.

    Returns:
      `(token, draw) -> [n, C]` standard normal, both int32 scalars.
    """
    keys = randomness.token_keys(randomness.image_keys(seed, index), num_tokens)
    return lambda token, draw: randomness.normal(keys[:, token], draw, channels)


def generate(
    host: nextstep.NextStep,
    head: flow_token.FlowTokenHead,
    settings: Settings,
    params: dict[str, Any],
    ids: jax.Array,
    padding: jax.Array,
    sources: jax.Array | None,
    noise: Callable[[jax.Array, jax.Array], jax.Array],
) -> Generated:
    """All tokens of a batch of images.

    Args:
      host, head: modules; `params` holds their trees `host` and `head`.
      settings: checked.
      ids: `[m * n, P]` int32 prompts that end with the begin-of-image mark, branch after branch.
      padding: `[m * n]` int32, leading positions that hold nothing.
      sources: `[m * n, M, C]` tokens of source images, at the placeholders of `ids`; None: none.
      noise: `(token, draw) -> [n, C]`, both traced int32 scalars.

    Returns:
      Generated.
    """
    num_tokens, branches = settings.num_tokens, settings.branches
    one = own_tokens(host, head, settings, params)

    def make(encoding: Encoding, k):
        return one(encoding.z[:, -1], k, functools.partial(noise, k))

    tokens, entropy = decode(
        host, params["host"], ids, padding, sources, num_tokens, branches, make
    )
    counts = Counts(
        backbone_calls=jnp.int32(num_tokens),
        head_evaluations=jnp.int32(num_tokens * settings.nfe),
        draft_calls=jnp.int32(0),
        backbone_rows=jnp.int32(num_tokens * branches),
    )
    return Generated(tokens, entropy, counts)


def own_tokens(
    host: nextstep.NextStep,
    head: flow_token.FlowTokenHead,
    settings: Settings,
    params: dict[str, Any],
) -> Callable[[jax.Array, jax.Array, Callable[[jax.Array], jax.Array]], jax.Array]:
    """What the own head makes of encodings; arguments as for `generate`.

    Returns:
      `(z [m * n, D], token, noise) -> [n, C]`: features, branch after branch; the number of the
      token, an int32 scalar or `[n]`; and its noise, `draw -> [n, C]`.
    """
    num_tokens, branches = settings.num_tokens, settings.branches
    scales = [
        jnp.asarray(nextstep.guidance_at(scale, num_tokens, settings.guidance_schedule))
        for scale in (settings.guidance, settings.guidance_image)
    ]

    def make(z, token, noise):
        token = jnp.asarray(token)
        index = jnp.tile(token, branches) if token.ndim else token
        # One scale for all images, or one for each.
        text, image = (scale[token].reshape(-1, 1) for scale in scales)
        x = flow_token.flow_sample(
            head,
            params["head"],
            host.apply({"params": params["host"]}, z, index, method="condition"),
            noise,
            steps=settings.nfe,
            shift=settings.shift,
            guidance=text if branches > 1 else None,
            guidance_image=image if branches > 2 else None,
            corrected=settings.corrected,
        )
        return nextstep.normalise(x) if settings.normalise else x

    return make


def decode(
    host: nextstep.NextStep,
    params: Any,
    ids: jax.Array,
    padding: jax.Array,
    sources: jax.Array | None,
    num_tokens: int,
    branches: int,
    make: Callable[[Encoding, jax.Array], jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """The prompt in one call, then one cached call for every token but the last.

    Args:
      host: the backbone, with its own `params`.
      ids, padding, sources: as for `generate`.
      num_tokens: N.
      branches: m, rows per image.
      make: `(encoding [m * n, 1, ...], token) -> [n, C]`, the head's part.

    Returns:
      tokens `[n, N, C]`, and `E [n, N]` of the conditional rows.
    """
    rows, prompt = ids.shape
    images = rows // branches
    apply = functools.partial(host.apply, {"params": params})

    def following(carry, k):
        cache, x = carry
        encoding, cache = apply(jnp.tile(x, (branches, 1))[:, None], cache, method="advance")
        x, entropy = make(encoding, k), encoding.entropy[:images, -1]
        return (cache, x), (x, entropy)

    cache = host.empty_cache(prompt + num_tokens, padding, prompt)
    encoding, cache = apply(ids, cache, sources, method="prefill")
    first = make(encoding, jnp.int32(0)), encoding.entropy[:images, -1]
    _, others = jax.lax.scan(following, (cache, first[0]), jnp.arange(1, num_tokens))
    return jax.tree.map(
        lambda a, b: jnp.moveaxis(jnp.concatenate([a[None], b]), 0, 1), first, others
    )
