"""Config fields that several hosts share; each host's own stand in its `*_host.py`.

A host has `fields` (name to `Field`), `tasks` (what can be trained on it) and
`check(flat, tokens)`, which refuses values that do not fit together.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from driftar_jax.config import Field, blocks, choice, flag, of_tasks, real, whole, wrong

_ANY = math.inf
_DRIFT = ("drift", "draft")
BACKBONES = ("joint", "frozen", "own_loss")
_TYPES = ("float32", "bfloat16")

BACKBONE: dict[str, Field] = {
    "host.width": whole(1, "Channels of the backbone."),
    "host.num_heads": whole(1, "Attention heads, a divisor of host.width."),
    "host.label_drop": real(
        0, 1, "Share of the images that learn without class or caption, for guidance."
    ),
    "host.dtype": choice(_TYPES, "Type of the activations; parameters are float32."),
    "host.remat": choice(
        ("none", "dots", "full"),
        "Activations computed again for the gradient: memory for time, same gradients.",
        before="none",
        may_miss=True,
        changeable=True,
    ),
    "host.attention": choice(
        ("auto", "xla", "cudnn", "pallas"),
        "Who computes attention; auto: what is best on the platform.",
        before="auto",
        may_miss=True,
        changeable=True,
    ),
}
DROPOUT: dict[str, Field] = {
    "host.scan": flag(
        "Whether training goes through the blocks in one loop, with host.remat: for TPUs.",
        before=False,
        may_miss=True,
        changeable=True,
    ),
    "host.attention_dropout": real(
        0, 1, "Dropout of attention weights in training.", open_high=True
    ),
    "host.projection_dropout": real(
        0, 1, "Dropout behind attention and in the MLP in training.", open_high=True
    ),
}
OWN_HEAD = of_tasks(
    ("host",),
    {
        "head.depth": blocks(1, "Blocks of the host's own many-step head."),
        "head.copies": whole(1, "Times and noises of each token in a step of its own head."),
    },
)
HEAD_WIDTH = of_tasks(("host",), {"head.width": whole(1, "Channels of the host's own head.")})
CHOSEN: dict[str, Field] = {
    "mask.tokens_per_image": whole(0, "Tokens per image whose head is trained; 0: all of them."),
}
PRIOR = of_tasks(
    _DRIFT,
    {
        "prior.scale": choice(
            ("entropy", "constant", "shuffled", "learned"),
            "What sets sigma of the prior: Eq. 6, or a control it is measured against.",
        ),
        "prior.sigma_max": real(0, _ANY, "Largest sigma of the prior (Eq. 6).", open_low=True),
        "prior.tau": real(
            0,
            _ANY,
            "Curvature of sigma over the entropy (Eq. 6).",
            open_low=True,
        ),
        "prior.constant": real(0, _ANY, "Sigma of prior.scale=constant."),
    },
)
DRIFT = of_tasks(
    _DRIFT,
    {
        "drift.field": choice(("energy", "laplace"), "Kernel of the drifting field (Eq. 8)."),
        "drift.draws": whole(2, "Draws G of the decoder for each context in a training step."),
        "drift.width": whole(1, "Channels of the one-step decoder."),
        "drift.depth": blocks(1, "Blocks of the one-step decoder."),
        "drift.standardised": flag("Whether the decoder reads its start once more, standardised."),
        "drift.guidance_max": real(
            1,
            _ANY,
            "Largest guidance scale that is trained into the decoder; 1: none.",
            before=1.0,
        ),
    },
)
DECODER_HEADS = of_tasks(
    ("drift",), {"drift.num_heads": whole(1, "Attention heads of the decoder of whole grids.")}
)
# Whose backbone a decoder of single tokens stands on, and how hard its draws repel each other.
TOKEN_DRIFT = of_tasks(
    _DRIFT,
    {
        "drift.backbone": choice(
            ("joint", "frozen"),
            "Whose the backbone is: it learns from the drift, or is that of init_from and stays.",
            before="joint",
            may_miss=True,
        ),
        "drift.repulsion": real(
            0,
            1.4,
            "Weight of the part of the field by which draws repel each other; 1: a proper score.",
            before=1.0,
            may_miss=True,
        ),
        "drift.repulsion_schedule": choice(
            ("constant", "annealed"),
            "Whether that weight stays, or goes to 1 in a line until the last step.",
            before="constant",
            may_miss=True,
        ),
    },
)
# And where the own head stays beside the one-step decoder: its loss, and what it draws or teaches.
OWN_BESIDE = of_tasks(
    _DRIFT,
    {
        "drift.field": choice(
            ("energy", "laplace", "dmd"),
            "Kernel of the drifting field (Eq. 8); dmd, on MAR: the frozen own head teaches.",
        ),
        "drift.backbone": dataclasses.replace(
            TOKEN_DRIFT["drift.backbone"],
            rule=lambda v: v in BACKBONES,
            allowed=" | ".join(BACKBONES),
            says="Whose backbone: taught by the drift, that of init_from, or by its own head too.",
        ),
        "drift.own_weight": real(
            0,
            _ANY,
            "Weight of the own head's loss beside the drift, with drift.backbone=own_loss.",
            open_low=True,
            before=1.0,
            may_miss=True,
        ),
        "drift.own_positives": whole(
            0,
            "Draws of the own head of init_from that attract beside the real token; 0: none.",
            before=0,
            may_miss=True,
        ),
        "drift.own_share": real(
            0,
            1,
            "Share of the attraction that comes from those draws.",
            open_low=True,
            before=1.0,
            may_miss=True,
        ),
        "drift.own_steps": whole(1, "Head evaluations of such a draw.", before=25, may_miss=True),
        "drift.fake_rate": real(
            0,
            100,
            "Learning rate of the head that follows the decoder with drift.field=dmd, in optim.lr.",
            open_low=True,
            before=1.0,
            may_miss=True,
        ),
    },
)
PHASES = of_tasks(
    _DRIFT,
    {
        "loss.freeze_at": real(
            0,
            1,
            "Share of the run after which the decoder alone learns (Eq. 10).",
            open_low=True,
        ),
    },
)
DRAFT = of_tasks(
    _DRIFT,
    {
        "draft.width": whole(1, "Channels of the draft head."),
        "draft.depth": blocks(1, "Blocks of the draft head."),
        "draft.num_heads": whole(1, "Attention heads of the draft head."),
        "loss.entropy_loss": choice(
            ("match", "maximize", "none"),
            "Entropy term of the draft head: that of the host, Eq. 5 as printed, or none.",
        ),
        "loss.alpha_start": real(0, 1, "Weight of the draft terms at step 0 (Eq. 9)."),
    },
)
TEACHER = of_tasks(
    ("draft",),
    {
        "teacher.unroll": blocks(1, "Steps ahead that the draft head goes on its own guesses."),
        "teacher.prior": real(0, _ANY, "Weight of the divergence of the drafted prior."),
        "teacher.fresh_head": flag(
            "Whether the draft head of init_from is left aside.", before=False
        ),
    },
)
SAMPLE: dict[str, Field] = {
    "sample.ar_steps": whole(1, "AR steps of an image."),
    "sample.nfe": whole(1, "Head evaluations of an AR step."),
    "sample.guidance": real(0, _ANY, "Classifier-free guidance scale; 1: none."),
    "sample.guidance_schedule": choice(
        ("linear", "constant"), "Whether guidance changes over the AR steps."
    ),
    "sample.temperature": real(
        0, _ANY, "Factor of the noise of sampling; 1: as trained.", open_low=True
    ),
}
ANNEALED: dict[str, Field] = {
    "sample.nfe_schedule": choice(
        ("constant", "two_stage", "linear", "cosine"),
        "How head evaluations fall over the AR steps.",
        changeable=True,
    ),
    "sample.nfe_last": whole(
        1, "Head evaluations of the last AR step, where they fall.", changeable=True
    ),
}
DRAFTED = of_tasks(
    _DRIFT,
    {
        "sample.gamma": Field(
            int,
            lambda v: v >= -1,
            "-1 (chosen by measuring) or groups from 0",
            "Groups drafted per round; 0: plain decoding.",
            changeable=True,
        ),
        "sample.rule": choice(
            ("gaussian", "coupled", "feature"), "How drafts are judged.", changeable=True
        ),
        "sample.delta": real(0, _ANY, "Bound of the rules coupled and feature.", changeable=True),
    },
)
# What every host has.
COMMON = {**BACKBONE, **OWN_HEAD, **PRIOR, **DRIFT, **PHASES, **SAMPLE}
# And a host that makes single tokens, one context each.
TOKENS = {**COMMON, **HEAD_WIDTH, **CHOSEN, **TOKEN_DRIFT, **DRAFT, **TEACHER, **DRAFTED}
# The own head's sizes, where it may stay beside Drift-AR: `check_own_head` says when.
SHARED_HEAD = {
    name: dataclasses.replace(field, tasks=("host", *_DRIFT), may_miss=True)
    for name, field in {**OWN_HEAD, **HEAD_WIDTH}.items()
}


def backbone(config: Any) -> dict[str, Any]:
    """Return the arguments of a host's module that `BACKBONE` has fields for."""
    host = config.host
    return dict(
        width=host.width,
        num_heads=host.num_heads,
        remat=host.get("remat", "none"),
        attention=host.get("attention", "auto"),
        dtype=jnp.dtype(host.dtype),
    )


def with_dropout(config: Any) -> dict[str, Any]:
    """Return `backbone`, and the arguments that `DROPOUT` has fields for."""
    host = config.host
    return backbone(config) | dict(
        scan=host.get("scan", False),
        attention_dropout=host.attention_dropout,
        projection_dropout=host.projection_dropout,
    )


_PAIRS = (("host.width", "host.num_heads"), ("draft.width", "draft.num_heads"))
_PAIRS += (("drift.width", "drift.num_heads"),)


def check_sizes(flat: dict[str, Any]) -> None:
    """Raise ValueError where heads do not divide their width, or blocks cannot run as is asked."""
    for width, heads in _PAIRS:
        if heads in flat and flat[width] % flat[heads]:
            raise wrong(heads, flat[heads], f"a divisor of {width} {flat[width]}")
    if flat.get("host.scan") and flat.get("host.remat", "none") == "none":
        raise wrong("host.scan", True, "false where host.remat is none: a loop would keep too much")
    if flat.get("host.attention") == "cudnn" and flat["host.dtype"] != "bfloat16":
        raise wrong("host.attention", "cudnn", f"another with host.dtype {flat['host.dtype']}")


def check_tokens(flat: dict[str, Any], tokens: int) -> None:
    """Raise ValueError where a host that makes single tokens cannot be trained so."""
    if flat["mask.tokens_per_image"] > tokens:
        raise wrong("mask.tokens_per_image", flat["mask.tokens_per_image"], f"0 to {tokens}")
    if flat.get("drift.field") == "laplace":
        allowed = "energy (a token has one real continuation, and laplace needs many)"
        raise wrong("drift.field", "laplace", allowed)
    check_backbone(flat)


def has_own_head(flat: Mapping[str, Any]) -> bool:
    """Say whether the host's own head is part of a run, by its flat config."""
    beside = flat.get("drift.backbone") == "own_loss" or flat.get("drift.own_positives", 0) > 0
    return flat["task"] == "host" or beside or flat.get("drift.field") == "dmd"


def check_own_head(flat: dict[str, Any]) -> None:
    """Raise ValueError where the own head, or what is to be taken from it, is not there."""
    has = has_own_head(flat)
    for name, field in SHARED_HEAD.items():
        if has and name not in flat:
            raise wrong(name, None, field.allowed)
    drawn, joint = flat.get("drift.own_positives", 0), flat.get("drift.backbone") == "joint"
    if drawn and joint:
        allowed = "0 with drift.backbone joint: the own head does not know a backbone that moves"
        raise wrong("drift.own_positives", drawn, allowed)
    if drawn and not flat["init_from"]:
        raise wrong("init_from", "", "the workdir of a host whose own head draws the positives")
    if flat.get("drift.field") == "dmd":
        _check_matched(flat)


# What the field of distribution matching needs, and what it has no place for.
_MATCHED = {
    "drift.backbone": ("frozen", "the own head is a teacher for the contexts it knows"),
    "drift.own_positives": (0, "nothing attracts by samples"),
    "drift.guidance_max": (1.0, "guidance comes from two rows"),
    "drift.repulsion": (1.0, "draws do not repel each other"),
}


def _check_matched(flat: dict[str, Any]) -> None:
    for name, (value, why) in _MATCHED.items():
        if flat.get(name, value) != value:
            raise wrong(name, flat[name], f"{value} with drift.field dmd: {why}")


def check_backbone(flat: dict[str, Any]) -> None:
    """Raise ValueError where a backbone that is to stay is none yet."""
    if flat["task"] == "drift" and flat.get("drift.backbone") == "frozen" and not flat["init_from"]:
        allowed = "the workdir of a trained host: drift.backbone is frozen"
        raise wrong("init_from", "", allowed)


def check_in_turn(flat: dict[str, Any], tokens: int) -> None:
    """Raise ValueError where a host cannot make one token after another so."""
    check_tokens(flat, tokens)
    if flat["sample.ar_steps"] != tokens:
        raise wrong("sample.ar_steps", flat["sample.ar_steps"], f"{tokens} (one per token)")
    if flat.get("prior.scale") == "shuffled":
        allowed = "entropy | constant | learned (tokens come one by one, with nobody to swap with)"
        raise wrong("prior.scale", "shuffled", allowed)


def check_steps(flat: dict[str, Any]) -> None:
    """Raise ValueError where the head's steps are too many or do not fall."""
    if flat["sample.nfe"] > 1000:
        raise wrong("sample.nfe", flat["sample.nfe"], "1 to 1000")
    last, most = flat.get("sample.nfe_last", 1), flat["sample.nfe"]
    if flat.get("sample.nfe_schedule", "constant") != "constant" and last > most:
        raise wrong("sample.nfe_last", last, f"1 to sample.nfe {most}: steps fall")
