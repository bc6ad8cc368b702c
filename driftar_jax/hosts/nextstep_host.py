"""NextStep-1 among the hosts: its family, its lock-step loop, its walk for speculative decoding.

A condition is a row of captions `[B, 1 + P]` (`data.captions`: the number of padded positions, then
the ids), or a `Prompt` that says what each branch of guidance reads.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from driftar_jax.config import blocks, former, of_tasks, real, whole, wrong
from driftar_jax.data import captions
from driftar_jax.heads import randomness
from driftar_jax.hosts import causal_walk, fields
from driftar_jax.hosts.base import Head, ImageSpec, Model
from driftar_jax.hosts.nextstep import NextStep, guidance_at
from driftar_jax.layers.causal import Cache
from driftar_jax.types import Encoding, Prompt


def with_sources(
    held: jax.Array, sources: jax.Array | None, tokens: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Put source images before the images to be made, in the rows whose prompts hold one.

    Args:
      held: `[B]` bool, rows with the placeholders of a source image in their prompt.
      sources: `[B, M, C]`; None: there are none.
      tokens: `[B, N, C]` of the images to be made.

    Returns:
      Tokens in the order of a row's placeholders, `[B, M + N, C]`, and `[B]` int32, how many of
      them stand before the image. Rows without a source have theirs behind, where none is read.
    """
    if sources is None:
        return tokens, jnp.zeros(len(tokens), jnp.int32)
    before, behind = (
        jnp.concatenate(pair, axis=1) for pair in ((sources, tokens), (tokens, sources))
    )
    count = jnp.where(held, sources.shape[1], 0).astype(jnp.int32)
    return jnp.where(held[:, None, None], before, behind), count


def _branches(model: Model, settings: Any, condition: Any):
    """Return `ids [m * B, P]`, `padding [m * B]` and sources, branch after branch."""
    if isinstance(condition, Prompt):
        # A prompt has its branches beside each other, `[B, m, 1 + P]`; the model wants branch after
        # branch.
        rows = jnp.moveaxis(condition.rows, 1, 0)
        rows = rows.reshape(-1, rows.shape[-1])
        sources = condition.sources
        if sources is not None:
            # Rows without placeholders never read theirs.
            sources = jnp.tile(sources, (settings.branches, 1, 1))
        return rows[:, 1:], rows[:, 0], sources
    rows = condition
    if settings.guided:
        nothing = jnp.asarray(captions.nothing(model.images.text))
        # The unconditional branch reads an empty caption, as it was trained with dropped ones.
        rows = jnp.concatenate([rows, jnp.broadcast_to(nothing, rows.shape)])
    return rows[:, 1:], rows[:, 0], None


def encodings(
    model: Model, params: Mapping[str, Any], ids, padding, tokens, sources=None
) -> Encoding:
    """Encode all tokens of known images in one call.

    Args:
      model, params: of a run.
      ids: `[B, P]` int32 prompts, `padding [B]`.
      tokens: `[B, N, C]`.
      sources: `[B, M, C]` tokens of source images at the placeholders of `ids`; None: none.

    Returns:
      `z [B, N, D]`, the hidden states before the tokens, and `E [B, N]`.
    """
    # The last token is in no context.
    held = jnp.full((ids.shape[0], tokens.shape[1] - 1), model.host.placeholder, ids.dtype)
    read, content = tokens[:, :-1], None
    if sources is not None:
        edited = (ids == model.host.placeholder).any(axis=1)
        read, _ = with_sources(edited, sources, read)
        # A source image is part of the prompt, whose keys do not count in the entropy.
        content = jnp.concatenate([jnp.zeros(ids.shape, bool), jnp.ones(held.shape, bool)], axis=1)
    encoding = model.host.apply(
        {"params": params["host"]},
        jnp.concatenate([ids, held], axis=1),
        read,
        padding=padding,
        content=content,
    )
    # From the begin-of-image mark on: its hidden state is the encoding of token 0.
    return jax.tree.map(lambda a: a[:, ids.shape[1] - 1 :], encoding)


def projected(host: NextStep, params: Any, encoding: Encoding) -> Encoding:
    """Return what head, prior and decoder read of an encoding; `params` are the host's."""
    z = host.apply({"params": params}, encoding.z, method="condition")
    return encoding.replace(z=z.astype(jnp.float32))


def tokens_of(
    model: Model,
    settings: Any,
    params: Mapping[str, Any],
    condition: Any,
    keys: jax.Array,
    head: Head | None,
) -> tuple[jax.Array, jax.Array]:
    """Generate all tokens `[B, N, C]` in raster order, and their `E [B, N]`; as `Family.plain`."""
    images, host = model.images, model.host
    token_keys = randomness.token_keys(keys, images.num_tokens)
    ids, padding, sources = _branches(model, settings, condition)
    if head is None:
        from driftar_jax.hosts import nextstep_own  # a one-step head samples without it

        one = nextstep_own.sampler(host, model.head, settings, images.num_tokens, params)
        noise = nextstep_own.noise_of(model, settings, token_keys)

        def make(encoding, k):
            return one(encoding.z[:, -1], k, functools.partial(noise, k))
    else:
        schedule = settings.guidance_schedule
        scale = jnp.asarray(guidance_at(settings.guidance, images.num_tokens, schedule))

        def make(encoding, k):
            # The prior and the decoder were trained on projected features.
            encoding = projected(host, params["host"], encoding)
            mu, std = head.starts(encoding, randomness.prior_keys(keys))
            # The first draw of the token's own key: the same noise that speculation and lookahead
            # give it.
            eps = randomness.normal(token_keys[:, k], 0, images.token_dim)
            return head.tokens(encoding, mu, std, eps[:, None], scale[k])[:, 0]

    prompt = ids, padding, sources
    return decode(host, params["host"], *prompt, images.num_tokens, settings.branches, make)


def decode(
    host: NextStep,
    params: Any,
    ids: jax.Array,
    padding: jax.Array,
    sources: jax.Array | None,
    num_tokens: int,
    branches: int,
    make: Callable[[Encoding, jax.Array], jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Read the prompt in one call, then make one cached call for every token but the last.

    Args:
      host: the backbone, with its own `params`.
      ids: `[m * n, P]` int32 prompts that end with the begin-of-image mark, branch after branch.
      padding: `[m * n]` int32, leading positions that hold nothing.
      sources: `[m * n, M, C]` tokens of source images, at the placeholders of `ids`; None: none.
      num_tokens: N.
      branches: m, rows per image.
      make: `(encoding [m * n, 1, ...], token) -> [n, C]`, the head's part.

    Returns:
      tokens `[n, N, C]`, and `E [n, N]` of the conditional rows.
    """
    apply = functools.partial(host.apply, {"params": params})

    def begin():
        # Room for all tokens although the last is never put in: nobody reads an encoding after it.
        cache = host.empty_cache(ids.shape[1] + num_tokens, padding, ids.shape[1])
        return apply(ids, cache, sources, method="prefill")

    return causal_walk.in_turn(
        begin,
        functools.partial(apply, method="advance"),
        make,
        num_tokens=num_tokens,
        branches=branches,
    )


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


_FIELDS = {
    **fields.TOKENS,
    "host.depth": blocks(2, "Blocks; the last gives the entropy."),
    "host.num_kv_heads": whole(1, "Heads of keys and values, a divisor of host.num_heads."),
    "host.mlp_width": whole(1, "Hidden channels of a block's MLP."),
    "host.norm_eps": real(0, math.inf, "Added to the variance in RMSNorm.", open_low=True),
    "host.rope_theta": real(1, math.inf, "Base of the rotary positions."),
    "host.context_noise": real(
        0,
        math.inf,
        "Most noise (standard deviation) on tokens as the host reads them in training.",
        before=0.0,
        may_miss=True,
    ),
    "text.length": whole(1, "Most words of a caption; longer ones are refused."),
    "text.unknown": real(0, 1, "Share of the words that training hides.", open_high=True),
    **of_tasks(("host",), {"text.loss": former(0.01, "Weight of the text's cross entropy.")}),
}


def _check(flat: dict[str, Any], tokens: int) -> None:
    """Raise ValueError where values do not fit together."""
    fields.check_sizes(flat)
    heads, groups = flat["host.num_heads"], flat["host.num_kv_heads"]
    if heads % groups:
        raise wrong("host.num_kv_heads", groups, f"a divisor of host.num_heads {heads}")
    if flat["host.width"] // heads % 2:
        raise wrong("host.num_heads", heads, "heads of an even width: they are rotated in pairs")
    fields.check_in_turn(flat, tokens)
    if flat["task"] == "host" and flat["sample.nfe"] < 2:
        raise wrong("sample.nfe", flat["sample.nfe"], "2 to 1000 (of a flow head)")
    fields.check_steps(flat)


@dataclasses.dataclass(frozen=True)
class NextStepFamily:
    """Serve as the `Family` (`base.py`) of NextStep-1: from text, one token after another."""

    name: str = "nextstep"
    order: str = "raster"
    drafts: bool = True
    fields = _FIELDS
    tasks = ("host", "drift", "draft")
    check = staticmethod(_check)

    def backbone(self, config: Any, images: ImageSpec) -> NextStep:
        """See `Family.backbone`."""
        return NextStep(
            vocab_size=images.text.vocab_size,
            placeholder=images.text.placeholder,
            token_dim=images.token_dim,
            depth=config.host.depth,
            num_kv_heads=config.host.num_kv_heads,
            head_dim=config.host.width // config.host.num_heads,
            mlp_width=config.host.mlp_width,
            norm_eps=config.host.norm_eps,
            rope_theta=config.host.rope_theta,
            **fields.backbone(config),
        )

    def own_head(self, config: Any, images: ImageSpec) -> nn.Module:
        """See `Family.own_head`."""
        from driftar_jax.hosts import nextstep_own

        return nextstep_own.module(config, images)

    def examples(self, model: Model):
        """See `Family.examples`."""
        x = jnp.zeros((1, model.images.token_dim))

        def host(key):
            ids = jnp.zeros((1, 2), jnp.int32)
            return model.host.init(key, ids, x[:, None], method="everything")

        def head(key):
            return model.head.init(key, x, jnp.zeros(1), jnp.zeros((1, model.host.width)))

        def draft(key):
            from driftar_jax.heads.draft import window_zeros

            return model.draft.init(key, *window_zeros(model))

        return {"host": host, "head": head, "draft": draft}

    def contexts(self, config: Any, model: Model):
        """See `Family.contexts`."""
        from driftar_jax.hosts import nextstep_contexts  # of training alone

        return nextstep_contexts.contexts(config, model)

    def check_settings(self, settings: Any, model: Model) -> None:
        """See `Family.check_settings`."""
        num_tokens = model.images.num_tokens
        if settings.ar_steps != num_tokens:
            raise wrong("ar_steps", settings.ar_steps, f"{num_tokens} (one per token of this host)")
        if settings.nfe_schedule != "constant":
            raise wrong("nfe_schedule", settings.nfe_schedule, "constant (of this host)")
        if not 0 < settings.shift < math.inf:
            raise wrong("shift", settings.shift, "a number above 0")
        for field in ("guidance", "guidance_image"):
            value = getattr(settings, field)
            if not 1 <= value < math.inf:
                allowed = "1 (none) or more: below 1 it is no guidance, and the published program "
                raise wrong(field, value, allowed + "pairs the wrong rows")
        if settings.guidance_image > 1 and settings.guidance == 1:
            allowed = "1 while guidance is 1: the image-only branch lies between the conditional "
            raise wrong("guidance_image", settings.guidance_image, allowed + "and the other one")

    def check_conditions(self, model: Model, condition: Any) -> None:
        """See `Family.check_conditions`."""
        rows = condition.rows if isinstance(condition, Prompt) else np.asarray(condition)
        if isinstance(condition, Prompt):
            if not len(rows):
                raise wrong("prompt", None, "at least one text")
            return
        want = 1 + model.images.text.prompt
        if rows.ndim != 2 or not len(rows) or rows.shape[1] != want:
            raise wrong("captions", f"shape {rows.shape}", f"at least one row of {want} numbers")

    def prepare(self, model: Model, params: Any, rows: int) -> tuple[Any, None]:
        """See `Family.prepare`."""
        return params, None

    def plain(self, model, settings, params, condition, keys, head, hole=None, trace=False):
        """See `Family.plain`."""
        tokens, entropy = tokens_of(model, settings, params, condition, keys, head)
        return causal_walk.traced(tokens, entropy) if trace else tokens

    def walk(self, model, settings, params, condition, keys, contexts: int) -> NextStepWalk:
        """See `Family.walk`."""
        ids, padding, sources = _branches(model, settings, condition)
        num_tokens, make = model.images.num_tokens, None
        if model.head is not None:
            from driftar_jax.hosts import nextstep_own

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

    def pieces(self, model: Model, settings: Any, params, condition, index, head_of):
        """Return nothing: one loop over a cache, whose pieces never run apart."""
        return {}

    def known_encoding(self, model: Model, params, tokens, known, condition) -> Encoding:
        """See `Family.known_encoding`."""
        asked = condition if isinstance(condition, Prompt) else Prompt(condition[:, None])
        rows = asked.rows[:, 0]
        encoding = encodings(model, params, rows[:, 1:], rows[:, 0], tokens, asked.sources)
        return projected(model.host, params["host"], encoding)

    def has_token_entropy(self, model: Model) -> bool:
        """See `Family.has_token_entropy`."""
        return True


FAMILY = NextStepFamily()
