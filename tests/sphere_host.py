"""A fourth host in one file: class-conditional, causal, its tokens read on a sphere (as SphereAR).

It stands in no folder of the package: `tests/end_to_end/test_fourth_host.py` puts it there.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from driftar_jax.config import blocks, whole, wrong
from driftar_jax.heads import draft, flow_token, randomness
from driftar_jax.heads.flow_token import FlowTokenHead
from driftar_jax.hosts import fields as shared
from driftar_jax.hosts.base import BaseFamily
from driftar_jax.hosts.causal_contexts import CausalContexts
from driftar_jax.hosts.causal_walk import CausalWalk, in_turn, traced
from driftar_jax.hosts.contexts import by_image, take
from driftar_jax.layers import causal
from driftar_jax.layers.dense import dense
from driftar_jax.types import Encoding

THETA, EPS = 10000.0, 1e-6


class Sphere(nn.Module):
    """A causal stack whose first input is the class; row 0 of the table is no class."""

    num_classes: int
    token_dim: int
    width: int
    depth: int
    num_heads: int
    mlp_width: int

    def setup(self):
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("class", "embed"))
        self.class_emb = self.param("class_emb", init, (self.num_classes + 1, self.width))
        self.token_in = dense(self.width, (None, "embed"), jnp.float32)
        self.stack = causal.CausalStack(
            depth=self.depth,
            width=self.width,
            num_heads=self.num_heads,
            num_kv_heads=self.num_heads,
            head_dim=self.width // self.num_heads,
            mlp_width=self.mlp_width,
            norm_eps=EPS,
            rope_theta=THETA,
        )

    def first(self, label):
        """Inputs `[B, 1, D]` of classes `[B]`."""
        return self.class_emb[label + 1][:, None]

    def embed(self, tokens):
        """Tokens `[B, Q, C]` on the sphere of radius sqrt(C), as inputs."""
        size = jnp.sqrt(jnp.mean(jnp.square(tokens), axis=-1, keepdims=True) + EPS)
        return self.token_in(tokens / size)

    def __call__(self, label, tokens):
        """Encoding of every token of `[B, N, C]`."""
        x = jnp.concatenate([self.first(label), self.embed(tokens[:, :-1])], axis=1)
        hidden, entropy = self.stack(x)
        return Encoding(z=hidden, entropy=entropy)

    def advance(self, x, cache):
        """Encoding behind inputs `[B, Q, D]`, and the cache."""
        hidden, entropy, cache = self.stack.advance(x, cache)
        return Encoding(z=hidden, entropy=entropy), cache


@dataclasses.dataclass(frozen=True)
class SphereWalk(CausalWalk):
    """The `Walk` of a batch of classes, rows of guidance behind one another."""

    module: Sphere
    params: Any
    label: jax.Array
    model: Any
    draft_params: Any
    scale: float
    make: Callable | None

    def apply(self, *args, method):
        return self.module.apply({"params": self.params}, *args, method=method)

    def memory(self):
        slots, rows = 1 + self.num_tokens + self.contexts, len(self.label)
        return causal.empty_cache(
            self.module.depth,
            self.module.num_heads,
            self.module.width // self.module.num_heads,
            slots=slots,
            padding=jnp.zeros(rows, jnp.int32),
            content_start=0,
            dtype=jnp.float32,
        )

    def advance(self, pending, before_first, memory):
        x = jnp.where(
            before_first[..., None],
            self.apply(self.label, method="first"),
            self.apply(pending, method="embed"),
        )
        return self.apply(x, memory, method="advance")

    def draft(self, last, tokens, step):
        latest, known = draft.window(self.model, tokens, step[:, None])
        latest, known = (jnp.concatenate([a] * self.branches) for a in (latest, known))
        return draft.after_window(self.model, self.draft_params, last, latest, known)

    def scales(self):
        return jnp.full(self.num_tokens, self.scale, jnp.float32)

    @property
    def above(self):
        return self.model.images.grid[1]

    def own(self, encoding, step, keys):
        noise = lambda draw: randomness.normal(keys[:, 0], draw, self.token_dim)  # noqa: E731
        return self.make(encoding.z[:, -1], noise)[:, None]


@dataclasses.dataclass(frozen=True)
class SphereContexts(CausalContexts):
    """Known images in training, teacher forced."""

    drop: float

    def conditions(self, key, batch):
        label = batch["label"]
        dropped = jax.random.bernoulli(jax.random.fold_in(key, 65), self.drop, label.shape)
        return {"label": jnp.where(dropped, -1, label), "dropped": dropped}

    def without_condition(self, rows):
        none = jnp.full_like(rows["label"], -1)
        return rows | {"label": none, "dropped": jnp.ones_like(rows["dropped"])}

    def encode(self, params, rows, dropout_key):
        return self.model.host.apply({"params": params["host"]}, rows["label"], rows["tokens"])

    def read(self, params, encoding):
        return encoding

    def draw_own(self, key, tokens, batch, copies):
        key_chosen, key_noise, key_time = jax.random.split(key, 3)
        rows = self.conditions(key, batch) | {"tokens": tokens}
        rows["positions"] = self.chosen(key_chosen, *tokens.shape[:2])
        shape = (copies, *rows["positions"].shape)
        noise = jax.random.normal(key_noise, (*shape, tokens.shape[2]), jnp.float32)
        u = jax.random.normal(key_time, shape, jnp.float32)
        return rows | {"noise": by_image(noise), "u": by_image(u)}, {}

    def own_terms(self, params, rows, totals, key):
        encoding, head = self.encode(params, rows, None), self.model.head
        noise, u = by_image(rows["noise"]), by_image(rows["u"])
        z = jnp.broadcast_to(take(encoding.z, rows["positions"]), (*u.shape, encoding.z.shape[-1]))
        x = jnp.broadcast_to(take(rows["tokens"], rows["positions"]), noise.shape)
        flat = lambda a: a.reshape(-1, *a.shape[3:])  # noqa: E731

        def velocity(x_t, t):
            return head.apply({"params": params["head"]}, x_t, t, flat(z))

        loss = flow_token.flow_loss(velocity, flat(x), flat(noise), flat(u)).mean()
        return loss, {"image": loss}


FIELDS = {
    **shared.TOKENS,
    "host.depth": blocks(2, "Blocks; the last but one gives the entropy."),
    "host.mlp_width": whole(1, "Hidden channels of a block's MLP."),
}


@dataclasses.dataclass(frozen=True)
class SphereFamily(BaseFamily):
    """The `Family` of this host."""

    name: str = "sphere"
    order: str = "raster"
    drafts: bool = True
    fields = FIELDS
    tasks = ("host", "drift", "draft")

    def check(self, flat, tokens):
        shared.check_sizes(flat)
        shared.check_in_turn(flat, tokens)

    def backbone(self, config, images):
        return Sphere(
            images.num_classes,
            images.token_dim,
            config.host.width,
            config.host.depth,
            config.host.num_heads,
            config.host.mlp_width,
        )

    def own_head(self, config, images):
        return FlowTokenHead(images.token_dim, config.head.width, config.head.depth)

    def examples(self, model):
        x = jnp.zeros((1, 2, model.images.token_dim))
        z = jnp.zeros((1, model.host.width))
        return {
            "host": lambda key: model.host.init(key, jnp.zeros(1, jnp.int32), x),
            "head": lambda key: model.head.init(key, x[:, 0], jnp.zeros(1), z),
            "draft": lambda key: model.draft.init(key, *draft.window_zeros(model)),
        }

    def contexts(self, config, model):
        return SphereContexts(model, config.mask.tokens_per_image, config.host.label_drop)

    def check_settings(self, settings, model):
        num_tokens = model.images.num_tokens
        if settings.ar_steps != num_tokens:
            raise wrong("ar_steps", settings.ar_steps, f"{num_tokens} (one per token)")

    def _rows(self, settings, label):
        return jnp.concatenate([label, jnp.full_like(label, -1)]) if settings.guided else label

    def _own(self, model, settings, params):
        if model.head is None:
            return None
        guidance = settings.guidance if settings.guided else None

        def make(z, noise):
            return flow_token.flow_sample(
                model.head, params["head"], z, noise, steps=settings.nfe, guidance=guidance
            )

        return make

    def walk(self, model, settings, params, condition, keys, contexts):
        return SphereWalk(
            num_tokens=model.images.num_tokens,
            contexts=contexts,
            prefix=1,
            token_dim=model.images.token_dim,
            branches=settings.branches,
            module=model.host,
            params=params["host"],
            label=self._rows(settings, jnp.asarray(condition)),
            model=model,
            draft_params=params.get("draft"),
            scale=settings.guidance,
            make=self._own(model, settings, params),
        )

    def plain(self, model, settings, params, condition, keys, head, hole=None, trace=False):
        walk = self.walk(model, settings, params, condition, keys, 1)
        token_keys = randomness.token_keys(keys, walk.num_tokens)

        def make(encoding, k):
            if head is None:
                noise = lambda draw: randomness.normal(token_keys[:, k], draw, walk.token_dim)  # noqa: E731
                return walk.make(encoding.z[:, -1], noise)
            mu, std = head.starts(encoding, randomness.prior_keys(keys))
            eps = randomness.normal(token_keys[:, k], 0, walk.token_dim)
            return head.tokens(encoding, mu, std, eps[:, None], jnp.float32(settings.guidance))[
                :, 0
            ]

        def advance(tokens, cache):
            return walk.apply(walk.apply(tokens, method="embed"), cache, method="advance")

        def begin():
            x = walk.apply(walk.label, method="first")
            return walk.apply(x, walk.memory(), method="advance")

        rest = dict(num_tokens=walk.num_tokens, branches=walk.branches)
        tokens, entropy = in_turn(begin, advance, make, **rest)
        return traced(tokens, entropy) if trace else tokens

    def known_encoding(self, model, params, tokens, known, condition):
        return model.host.apply({"params": params["host"]}, condition, tokens)


FAMILY = SphereFamily()
