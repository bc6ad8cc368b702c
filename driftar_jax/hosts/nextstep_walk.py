"""NextStep-1 as speculative decoding and lookahead see it: a walk over its cache."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from driftar_jax.heads import randomness
from driftar_jax.hosts import causal_walk
from driftar_jax.hosts.base import Model
from driftar_jax.hosts.nextstep import NextStep, guidance_at
from driftar_jax.hosts.nextstep_encodings import by_branch, projected
from driftar_jax.layers.causal import Cache
from driftar_jax.types import Encoding


@dataclasses.dataclass(frozen=True)
class NextStepWalk(causal_walk.CausalWalk):
    """A `Walk` (`base.py`) over NextStep-1; tokens come in raster order, one per step.

    Attributes:
      module: the backbone.
      params: its parameters.
      ids: `[branches * B, P]` int32 prompts that end with the begin-of-image mark.
      padding: `[branches * B]` int32.
      sources: `[branches * B, M, C]` tokens of source images; None: none.
      model: of the run, for its draft head; `draft_params` are the head's.
      guidance: `[N]` float32.
      make: of `nextstep_own.sampler`, where the model has a flow head.
      temperature: of that head's steps.
      columns: of the grid of tokens.
    """

    module: NextStep
    params: Any
    ids: jax.Array
    padding: jax.Array
    sources: jax.Array | None = None
    model: Model | None = None
    draft_params: Any = None
    guidance: Any = None
    make: Callable | None = None
    temperature: float = 1.0
    columns: int = 1

    @classmethod
    def of(cls, module: NextStep, params, ids, padding, num_tokens, contexts, **rest):
        """Make a walk; prefix and token width follow from the prompts and the module."""
        shape = dict(prefix=ids.shape[1], token_dim=module.token_dim)
        rest = {"branches": 1, **rest}
        return cls(
            num_tokens, contexts, module=module, params=params, ids=ids, padding=padding,
            **shape, **rest,
        )  # fmt: skip

    def memory(self) -> Cache:
        """Read the prompt without its last mark: one call, of the prompt's length."""
        # A call near the end overshoots the last token by up to `contexts` slots.
        slots = self.prefix + self.num_tokens + self.contexts
        cache = self.module.empty_cache(slots, self.padding, self.prefix)
        _, cache = self._apply(self.ids[:, :-1], cache, self.sources, method="prefill")
        return cache

    def advance(self, pending, before_first, memory):
        """See `CausalWalk.advance`."""
        image = self._apply(pending, method="embed_image")
        # Before token 0 the pending input is the begin-of-image mark, which `memory` therefore left
        # out: so the first call has the shape of all others.
        mark = self._apply(self.ids[:, -1:], method="embed")
        x = jnp.where(before_first[..., None], mark, image)
        return self._apply(x, memory, method="advance_inputs")

    def read(self, encoding: Encoding) -> Encoding:
        """Return the encoding through the host's projector, as the heads were trained."""
        return projected(self.module, self.params, encoding)

    def draft(self, last: Encoding, tokens: jax.Array, step: jax.Array) -> Encoding:
        """See `Walk.draft`; the draft head reads the last tokens, not the whole image."""
        from driftar_jax.heads import draft  # of drafting alone

        latest, known = draft.window(self.model, tokens, step[:, None])
        latest, known = (jnp.concatenate([a] * self.branches) for a in (latest, known))
        return draft.after_window(self.model, self.draft_params, last, latest, known)

    def scales(self) -> jax.Array:
        """See `Walk.scales`."""
        return self.guidance

    @property
    def above(self) -> int:
        """See `Walk.above`."""
        return self.columns

    def own(self, encoding: Encoding, step: jax.Array, keys: jax.Array) -> jax.Array:
        """See `Walk.own`."""

        def noise(draw):
            eps = randomness.normal(keys[:, 0], draw, self.token_dim)
            return eps * jnp.where(draw > 0, self.temperature, 1.0)

        return self.make(encoding.z[:, -1], self._last(step), noise)[:, None]

    @property
    def _apply(self):
        return functools.partial(self.module.apply, {"params": self.params})


def walk_of(
    model: Model, settings: Any, params: Mapping[str, Any], condition: Any, contexts: int
) -> NextStepWalk:
    """Bind the host to a batch; arguments as for `Family.walk`."""
    ids, padding, sources = by_branch(model, settings, condition)
    num_tokens, make = model.images.num_tokens, None
    if model.head is not None:
        from driftar_jax.hosts import nextstep_own  # a one-step head samples without it

        make = nextstep_own.sampler(model.host, model.head, settings, num_tokens, params)
    return NextStepWalk.of(
        model.host,
        params["host"],
        ids,
        padding,
        num_tokens,
        contexts,
        branches=settings.branches,
        sources=sources,
        model=model,
        draft_params=params.get("draft"),
        guidance=guidance_at(settings.guidance, num_tokens, settings.guidance_schedule),
        make=make,
        temperature=settings.temperature,
        columns=model.images.grid[1],
    )
