"""TransDiff among the hosts: its family, and its lock-step road.

Its AR steps are whole grids: one of a class, or (MRAR) several images of a class in a row, the last
of which counts.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from driftar_jax.config import blocks, choice, former, of_tasks, place, real, whole, wrong
from driftar_jax.heads import randomness
from driftar_jax.hosts import fields
from driftar_jax.hosts.base import BaseFamily, Head, ImageSpec, Model, Walk
from driftar_jax.hosts.schedules import grid_guidance_at
from driftar_jax.hosts.transdiff import TransDiff, class_table
from driftar_jax.types import Encoding

_table = functools.partial(jax.jit, static_argnums=0)(class_table)


def by_own_head(
    model: Model, settings: Any, params: Mapping[str, Any], label: jax.Array, keys: jax.Array
) -> jax.Array:
    """Generate the last of the images in a row, `[B, N, C]` float32; arguments as for `plain`.

    A group `table` of the parameters (of `class_table`) spares the 1-step form its backbone call.
    """
    from driftar_jax.hosts.transdiff_flow import generate  # a Drift-AR run has no such head

    token_keys = randomness.token_keys(keys, model.images.num_tokens)
    # Numbers of noise draws: 0 is the start, which all images in a row share, then `most` numbers
    # for each group so that no two steps ever use the same.
    most = max(settings.head_steps)

    def noise(draw):
        return randomness.normal(token_keys, draw, model.images.token_dim)

    grids = generate(
        model.host,
        model.head,
        params,
        label,
        noise(0),
        lambda group, step: noise(1 + group * most + step),
        shape=model.images.grid,
        steps=settings.head_steps,
        guidance=grid_guidance_at(settings.guidance, settings.ar_steps, settings.guidance_schedule),
        scale_drift=settings.drift_scale,
        scale_noise=settings.temperature,
        table=params.get("table"),
    )
    return grids[-1]


def by_one_step_head(
    model: Model,
    settings: Any,
    params: Mapping[str, Any],
    label: jax.Array,
    keys: jax.Array,
    head: Head,
) -> jax.Array:
    """Generate whole grids `[B, N, C]` float32 by the decoder, or the means of their prior."""
    rows = jnp.concatenate([label, jnp.full_like(label, -1)]) if head.guided else label
    if "table" in params:
        encoding = jax.tree.map(lambda a: a[rows], params["table"])
    else:
        encoding = model.host.apply({"params": params["host"]}, rows)
    # The whole grid is one AR step: prior, start and decoder see all of it at once.
    mu, std = head.starts(encoding, randomness.prior_keys(keys))
    noise_keys = randomness.token_keys(keys, model.images.num_tokens)
    eps = randomness.normal(noise_keys, 0, model.images.token_dim)
    return head.tokens(encoding, mu, std, eps, jnp.float32(settings.guidance))


# Images of a class that are made in a row, one for each AR step.
GROUPS = {"one_step": 1, "mrar": 4}


def _has_bank(flat) -> bool:
    return flat["task"] == "drift" or flat.get("host.form") == "mrar"


_FIELDS = {
    **fields.COMMON,
    **fields.DROPOUT,
    **fields.ANNEALED,
    **fields.DECODER_HEADS,
    "host.form": choice(tuple(GROUPS), "One image by itself, or images of a class in a row."),
    "host.depth": blocks(2, "Blocks; the last gives the entropy."),
    "host.row_patch": whole(1, "Side of the square of tokens that one content row stands for."),
    "host.buffer_size": whole(1, "Rows of class tokens in front of the content rows."),
    "sample.drift_scale": real(
        0, math.inf, "Factor of the velocity in the flow head's steps.", open_low=True
    ),
    **of_tasks(
        ("drift",),
        {
            "drift.guidance_power": former(3.0, "p in the scales' density alpha^-p."),
            "drift.guidance_none": former(0.5, "Share of the rows that learn without guidance."),
            "drift.features": choice(
                ("identity", "penultimate", "mae"),
                "Space in which whole grids drift: tokens, or features of a trained network.",
            ),
            "drift.features_from": place("Workdir of that network; '' for identity."),
            "drift.classes": whole(1, "Rows of a step: classes that drift, one grid each."),
            "drift.positives": whole(1, "Real grids of its class that attract a row."),
            "drift.unconditional": whole(
                0, "Real grids of any class that carry the guidance; 0: none."
            ),
            "drift.chunk": whole(0, "Rows through decoder and features at a time; 0: all."),
        },
    ),
    "bank.size": whole(1, "Real grids kept of every class.", when=_has_bank),
    "bank.dtype": choice(("float32", "bfloat16"), "Type of the grids kept.", when=_has_bank),
    "bank.limit_gib": real(
        0, math.inf, "Most memory that the bank may take.", open_low=True, when=_has_bank
    ),
}


def _check(flat: dict[str, Any], tokens: int) -> None:
    """Raise ValueError where values do not fit together."""
    fields.check_sizes(flat)
    side, form = math.isqrt(tokens), flat["host.form"]
    if side % flat["host.row_patch"]:
        allowed = f"a divisor of the grid's side {side}"
        raise wrong("host.row_patch", flat["host.row_patch"], allowed)
    if flat["sample.ar_steps"] != GROUPS[form]:
        allowed = f"{GROUPS[form]} (host.form is {form})"
        raise wrong("sample.ar_steps", flat["sample.ar_steps"], allowed)
    if flat.get("bank.size", GROUPS[form]) < GROUPS[form]:
        raise wrong("bank.size", flat["bank.size"], f"at least {GROUPS[form]} images in a row")
    if flat["task"] == "drift":
        _check_drift(flat)
    else:
        for field in ("sample.nfe", "sample.nfe_last"):
            if flat[field] < 2:
                raise wrong(field, flat[field], "a whole number of at least 2")
    fields.check_steps(flat)


def _check_drift(flat: dict[str, Any]) -> None:
    """Check drifting of whole grids; a single draw would have nothing that repels it."""
    images = flat["train.batch_size"] // flat["optim.accumulate"]
    if flat["drift.classes"] > images:
        raise wrong("drift.classes", flat["drift.classes"], f"1 to {images} images of a batch")
    chunk = flat["drift.chunk"]
    if chunk and flat["drift.classes"] % chunk:
        allowed = f"0 or a divisor of drift.classes {flat['drift.classes']}"
        raise wrong("drift.chunk", chunk, allowed)
    if flat["drift.positives"] > flat["bank.size"]:
        allowed = f"1 to bank.size {flat['bank.size']}"
        raise wrong("drift.positives", flat["drift.positives"], allowed)
    for field, want in (("host.form", "one_step"), ("host.row_patch", 1)):
        if flat[field] != want:
            raise wrong(field, flat[field], f"{want} (task drift has a prior for every token)")
    if flat["drift.guidance_max"] > 1 and not flat["drift.unconditional"]:
        allowed = "at least 1: unconditional samples carry the guidance of drift.guidance_max"
        raise wrong("drift.unconditional", 0, allowed)
    trained, network = flat["drift.features"] != "identity", bool(flat["drift.features_from"])
    if trained != network:
        allowed = "the workdir of a trained network" if trained else "'' for identity"
        raise wrong("drift.features_from", flat["drift.features_from"], allowed)


@dataclasses.dataclass(frozen=True)
class TransDiffFamily(BaseFamily):
    """Serve as the `Family` (`base.py`) of TransDiff: class-conditional, whole grids."""

    name: str = "transdiff"
    order: str = "grid"
    drafts: bool = False
    fields = _FIELDS
    tasks = ("host", "drift")
    check = staticmethod(_check)

    def backbone(self, config: Any, images: ImageSpec) -> TransDiff:
        """See `Family.backbone`; one content row stands for `row_patch` squared tokens."""
        groups, square = GROUPS[config.host.form], config.host.row_patch**2
        return TransDiff(
            num_rows=groups * images.num_tokens // square,
            groups=groups,
            # The 1-step form keeps the released projection of single tokens, though nothing reads
            # it.
            reference_dim=images.token_dim * (square if groups > 1 else 1),
            num_classes=images.num_classes,
            depth=config.host.depth,
            buffer_size=config.host.buffer_size,
            **fields.with_dropout(config),
        )

    def own_head(self, config: Any, images: ImageSpec) -> nn.Module:
        """See `Family.own_head`."""
        from driftar_jax.heads.flow import VelocityNet  # a Drift-AR run has none

        return VelocityNet(
            token_dim=images.token_dim,
            num_tokens=images.num_tokens,
            width=config.host.width,
            depth=config.head.depth,
            num_heads=config.host.num_heads,
            attention_dropout=config.host.attention_dropout,
            projection_dropout=config.host.projection_dropout,
            remat=config.host.get("remat", "none"),
            dtype=jnp.dtype(config.host.dtype),
        )

    def examples(self, model: Model):
        """See `Family.examples`."""
        label = jnp.zeros((1,), jnp.int32)

        def host(key):
            return model.host.init(key, label)

        def head(key):
            x = jnp.zeros((1, model.head.num_tokens, model.head.token_dim))
            z = jnp.zeros((1, model.host.group_rows, model.host.width))
            return model.head.init(key, x, label, z)

        return {"host": host, "head": head}

    def contexts(self, config: Any, model: Model) -> None:
        """See `Family.contexts`: none, for whole grids have tasks of their own."""

    def check_settings(self, settings: Any, model: Model) -> None:
        """See `Family.check_settings`."""
        groups = model.host.groups
        if settings.ar_steps != groups:
            raise wrong("ar_steps", settings.ar_steps, f"{groups} (images in a row of this host)")
        last = settings.nfe if settings.nfe_schedule == "constant" else settings.nfe_last
        for field, value in (("nfe", settings.nfe), ("nfe_last", last)):
            if settings.method == "own" and value < 2:
                raise wrong(field, value, "at least 2 (of a flow head)")
        if not 0 < settings.drift_scale < math.inf:
            raise wrong("drift_scale", settings.drift_scale, "a number above 0")

    def prepare(self, model: Model, params: Any, rows: int) -> tuple[Any, float | None]:
        """Add a group `table` where a table of the classes costs less than `rows` rows.

        What the 1-step form encodes is its class alone: 1,000 images of 10 classes need 11 rows.
        """
        classes = model.images.num_classes + 1
        # MRAR encodes images as well as classes, so that a table of classes does not save its
        # calls.
        if model.host.groups > 1 or rows <= classes:
            return params, None
        return {**params, "table": _table(model.host, params["host"])}, classes

    def plain(self, model, settings, params, condition, keys, head, hole=None, trace=False):
        """See `Family.plain`; nothing is traced, as `sampling.traces.check` says."""
        if head is None:
            return by_own_head(model, settings, params, condition, keys)
        return by_one_step_head(model, settings, params, condition, keys, head)

    def walk(self, model, settings, params, condition, keys, contexts: int) -> Walk:
        """See `Family.walk`; of the images in a row."""
        from driftar_jax.hosts.transdiff_walk import TransDiffWalk  # of drafts alone

        branches = 2 if settings.guided else 1
        return TransDiffWalk(model.host, params["host"], condition, model.images.grid, branches)

    def known_encoding(self, model: Model, params, tokens, known, condition) -> Encoding:
        """See `Family.known_encoding`: the class alone is known."""
        return model.host.apply({"params": params["host"]}, condition)

    def has_token_entropy(self, model: Model) -> bool:
        """See `Family.has_token_entropy`."""
        return model.host.groups == 1 and model.host.num_rows == model.images.num_tokens


FAMILY = TransDiffFamily()
