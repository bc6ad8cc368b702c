"""The sampler's part for a host that reads captions and makes one token after another.

Conditions are rows `[B, 1 + P]` of `data.captions`: the number of padded positions, then the ids.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from driftar_jax.config import wrong
from driftar_jax.data import captions
from driftar_jax.drift.head import DriftHead
from driftar_jax.heads import randomness, window
from driftar_jax.hosts import nextstep
from driftar_jax.hosts.nextstep_groups import NextStepGroups
from driftar_jax.model import Parts
from driftar_jax.sampling import causal_sampler, speculative
from driftar_jax.types import Encoding


def check(settings: Any, parts: Parts) -> None:
    """Raises ValueError (field, value, allowed) where this host cannot sample so."""
    num_tokens = parts.images.num_tokens
    if settings.ar_steps != num_tokens:
        raise wrong("ar_steps", settings.ar_steps, f"{num_tokens} (one per token of this host)")
    if settings.nfe_schedule != "constant":
        raise wrong("nfe_schedule", settings.nfe_schedule, "constant (of this host)")
    if settings.method == "own" and settings.nfe < 2:
        raise wrong("nfe", settings.nfe, "at least 2 (of a flow head)")
    if settings.guidance < 1:
        raise wrong("guidance", settings.guidance, "1 (none) or more")


def check_rows(parts: Parts, rows: np.ndarray) -> None:
    """Raises ValueError where `rows` are no conditions of this host."""
    want = 1 + parts.images.text.prompt
    if rows.ndim != 2 or not len(rows) or rows.shape[1] != want:
        raise wrong("captions", f"shape {rows.shape}", f"at least one row of {want} numbers")


@dataclasses.dataclass(frozen=True)
class ProjectedHead:
    """A `DriftHead` that reads encodings through the host's projector, as it was trained.

    Attributes:
      head: of the run.
      project: as `projected`.
    """

    head: DriftHead
    project: Callable[[Encoding], Encoding]

    @property
    def temperature(self) -> float:
        return self.head.temperature

    def starts(self, encoding: Encoding, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See `DriftHead.starts`."""
        return self.head.starts(self.project(encoding), keys)

    def tokens(self, encoding: Encoding, mu, std, eps, scale) -> jax.Array:
        """See `DriftHead.tokens`."""
        return self.head.tokens(self.project(encoding), mu, std, eps, scale)


def projected_head(parts: Parts, settings: Any, params: dict[str, Any]) -> ProjectedHead:
    """Prior and decoder as checked settings want them; `mean` has no decoder."""
    decoder = parts.decoder if settings.method == "drift" else None
    trained = settings.guidance_form == "trained"
    guided, temperature = settings.guided, settings.temperature
    head = DriftHead(parts.prior, decoder, params, guided, temperature, trained)

    return ProjectedHead(head, lambda encoding: projected(parts, params, encoding))


def encodings(parts: Parts, params: dict[str, Any], ids, padding, tokens) -> Encoding:
    """Encodings of all tokens of known images, from one call.

    Args:
      parts, params: of a run.
      ids: `[B, P]` int32 prompts, `padding [B]`.
      tokens: `[B, N, C]`.

    Returns:
      `z [B, N, D]`, the hidden states before the tokens, and `E [B, N]`.
    """
    # The last token is in no context.
    held = jnp.full((ids.shape[0], tokens.shape[1] - 1), parts.host.placeholder, ids.dtype)
    made = parts.host.apply(
        {"params": params["host"]},
        jnp.concatenate([ids, held], axis=1),
        tokens[:, :-1],
        padding=padding,
    )
    return jax.tree.map(lambda a: a[:, ids.shape[1] - 1 :], made)


def projected(parts: Parts, params: dict[str, Any], encoding: Encoding) -> Encoding:
    """What head, prior and decoder read of an encoding."""
    z = parts.host.apply({"params": params["host"]}, encoding.z, method="condition")
    return encoding.replace(z=z.astype(jnp.float32))


def prompts(parts: Parts, settings: Any, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`ids [m * B, P]` and `padding [m * B]`; guided rows without a caption come last."""
    if settings.guided:
        nothing = jnp.asarray(captions.nothing(parts.images.text))
        rows = jnp.concatenate([rows, jnp.broadcast_to(nothing, rows.shape)])
    return rows[:, 1:], rows[:, 0]


def scales(parts: Parts, settings: Any) -> jax.Array:
    """Guidance `[N]` of each token."""
    given = settings.guidance, parts.images.num_tokens, settings.guidance_schedule
    return jnp.asarray(nextstep.guidance_at(*given))


def tokens(
    parts: Parts, settings: Any, params: dict[str, Any], rows: jax.Array, keys: jax.Array
) -> jax.Array:
    """Tokens `[B, N, C]` of plain decoding.

    Args:
      parts, params: of a run.
      settings: `sampler.Settings`, checked.
      rows: `[B, 1 + P]` int32.
      keys: `[B]`, of `draws.image_keys`.
    """
    images = parts.images
    token_keys = randomness.token_keys(keys, images.num_tokens)
    ids, padding = prompts(parts, settings, rows)

    def noise(token, draw):
        made = randomness.normal(token_keys[:, token], draw, images.token_dim)
        # The start of the own head is no step of it.
        return made * jnp.where(draw > 0, settings.temperature, 1.0)

    if settings.method == "own":
        asked = causal_sampler.Settings(
            images.grid,
            nfe=settings.nfe,
            guidance=settings.guidance,
            guidance_schedule=settings.guidance_schedule,
        )
        given = parts.host, parts.head, asked, params, ids, padding, None, noise
        return causal_sampler.generate(*given).tokens
    head, scale = projected_head(parts, settings, params), scales(parts, settings)

    def make(encoding, k):
        mu, std = head.starts(encoding, randomness.prior_keys(keys))
        eps = randomness.normal(token_keys[:, k], 0, images.token_dim)
        return head.tokens(encoding, mu, std, eps[:, None], scale[k])[:, 0]

    branches = 2 if settings.guided else 1
    given = parts.host, params["host"], ids, padding, None, images.num_tokens, branches, make
    return causal_sampler.decode(*given)[0]


def drafted(
    parts: Parts,
    rule: speculative.Rule,
    settings: Any,
    params: dict[str, Any],
    rows: jax.Array,
    keys: jax.Array,
) -> speculative.Engine:
    """What makes `tokens` by speculative decoding; `rule` says how far to draft."""
    images = parts.images
    ids, padding = prompts(parts, settings, rows)
    branches = 2 if settings.guided else 1
    host = NextStepGroups(
        module=parts.host,
        params=params["host"],
        ids=ids,
        padding=padding,
        num_tokens=images.num_tokens,
        contexts=rule.gamma + 1,
        branches=branches,
    )

    def draft(last, made, step):
        seen, known = window.around(parts, made, step[:, None])
        seen, known = (jnp.concatenate([a] * branches) for a in (seen, known))
        return window.predict(parts, params["draft"], last, seen, known)

    return speculative.Engine(
        host,
        draft if rule.gamma else None,
        projected_head(parts, settings, params),
        randomness.token_keys(keys, images.num_tokens),
        randomness.prior_keys(keys),
        scales(parts, settings),
        rule,
        params.get("tracker"),
    )
