"""How to sample: the settings of a request, and whether a model can be sampled so."""

import contextlib
import dataclasses
import math

import numpy as np

from driftar_jax.config import nearest, wrong
from driftar_jax.heads import early_stop
from driftar_jax.hosts.base import Model
from driftar_jax.hosts.schedules import (
    CHEAP_HEAD,
    EVERYWHERE,
    GUIDANCE_SCHEDULES,
    NFE_SCHEDULES,
    full_steps,
    guided_steps,
    head_steps,
)

LOOKAHEAD_DELTA = 0.02
# Why a host has no next token to guess, by the order of its tokens.
_NO_NEXT = {
    "any": "this host reveals tokens in any order: none follows from the others",
    "grid": "this host makes whole grids, no token after another",
}

GUIDANCE_FORMS = ("extrapolate", "trained")
SPACINGS = ("even", "trimmed")
# What drafts are accepted by (`verify.py`), and what the bound of a guess is proportional to.
RULES = ("gaussian", "coupled", "feature")
BOUNDS = ("entropy", "constant", "sigma")
# For so many groups of a window, a call has room to read one settled group once more.
REREAD = 4


@dataclasses.dataclass(frozen=True)
class Rule:
    """How far to draft and what to accept. Static.

    Attributes:
      gamma: groups drafted at most per round; 0 is plain AR decoding.
      name: one of `RULES`.
      delta: bound of `coupled` (standard deviations) and `feature` (root mean square); not read by
        `gaussian`.
      stop: tau_g of the early stop (`early_stop.stop`); 0 never stops, `early_stop.TRAINED` asks
        the engine's tracker.
      share: gamma of tau_c.
    """

    gamma: int
    name: str = "gaussian"
    delta: float = 0.0
    stop: float = 0.0
    share: float = early_stop.GAMMA


@dataclasses.dataclass(frozen=True)
class Window:
    """How far to look ahead and when a guess stands. Static.

    Attributes:
      size: W, groups made in one call; 1 is plain decoding.
      delta: how far a guess may move, as a share of the spread of the tokens that were made of its
        image so far (the standard deviation about the mean of each channel); with 0 no guess may.
      bound: what the bound of a token is proportional to: `entropy` of the target, `sigma` of its
        start, or `constant`. Bounds have mean delta over the tokens that were made of the image.
    """

    size: int
    delta: float = 0.0
    bound: str = "entropy"

    @property
    def contexts(self) -> int:
        """Count the most contexts of one call: the window and what it reads once more."""
        return self.size + self.size // REREAD


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to sample. Static: one compilation per value.

    Attributes:
      method: `own` (the host's many-step head), `drift` (one evaluation), `mean` (the prior mean).
      ar_steps: T, 1..N.
      nfe: head evaluations per AR step; `own` only, `drift` is always 1 and `mean` 0.
      nfe_schedule: `constant`, or `two_stage | linear | cosine`: they fall from `nfe` to `nfe_last`
        over the AR steps, as DiSA does.
      nfe_last: head evaluations of the last AR step, 1..nfe; not read by `constant`.
      guidance: scale s; 1 is none.
      guidance_image: scale of a source image, 1 or more; above 1 needs `guidance` above 1.
      guidance_form: `extrapolate` runs an unconditional branch beside the conditional one and
        extrapolates: the noise prediction for `own`, the decoded tokens (`u + s (c - u)`, same
        start noise) for `drift`. `trained` gives the scale to a decoder that has learned it, and
        runs the conditional branch alone.
      guidance_schedule: `constant`, `linear` (rises over masked AR steps and images in a row, falls
        over tokens in raster order) or `rising` (the same).
      guidance_interval: `a,b`, the share of the AR steps in which guidance acts: step k where
        `a <= k / T < b`; in the others unconditional rows are not run. Of hosts of any order.
      spacing: of the diffusion head's steps: `even` from 0 to 999 as published, `trimmed` from 0 to
        950, which is the better one for heads trained for minutes. A single step is always trimmed:
        the published rule would keep timestep 0, which denoises nothing.
      shift: of the token flow head's times; above 1 spends more evaluations near the noise.
      corrected: end that head's times at 1, where the published shifted grid stops short.
      normalise: project each token of that head to mean 0 and standard deviation 1.
      temperature: factor of the head's step noise (`own`) or of the start's noise (`drift`).
      drift_scale: factor of the drift of TransDiff's own sampler (its `scale_0`; the temperature is
        its `scale_1`).
      gamma: AR steps drafted per round of speculative decoding; 0 is plain decoding, -1 stands for
        the fastest, which is found by measuring (`draft_count.py`). With one AR step there is
        nothing to draft, and decoding is plain.
      rule: what drafts are accepted by, one of `RULES`.
      delta: bound of the rules `coupled` and `feature`; with `lookahead`, how far a guess may move
        as a share of the tokens' spread (`Window`), then 0.02 by default.
      lookahead: tokens made in one call from guesses, without drafts; 0 is plain decoding, -1
        stands for the fastest, which is found by measuring (`window_size.py`). Of hosts that make
        one token after another.
      bound: what the bound of a guess is proportional to, one of `BOUNDS`.
      accelerator: `none`, or a cache that calls lean on (`mar.ACCELERATORS`), of MAR.
      order: in which a grid is revealed (`hosts/orders.py`), of hosts of any order.
      stop: tau_g of the published early stop of drafting; 0 never stops, `early_stop.TRAINED` takes
        the checkpoint's statistics.
      draft_steps: AR steps that a draft model (`Model.drafter`) makes before the model checks them
        (CSpD); 0 leaves it aside.
      draft_prefill: share of the AR steps that the model makes alone at first.
      draft_tau: what the test divides distances by, in standard deviations of the last reverse
        step.
    """

    method: str
    ar_steps: int
    nfe: int = 100
    guidance: float = 1.0
    guidance_schedule: str = "linear"
    temperature: float = 1.0
    spacing: str = "even"
    nfe_schedule: str = "constant"
    nfe_last: int = 5
    guidance_form: str = "extrapolate"
    drift_scale: float = 1.0
    gamma: int = 0
    rule: str = "gaussian"
    delta: float = 1.0
    stop: float = 0.0
    guidance_image: float = 1.0
    shift: float = 1.0
    corrected: bool = False
    normalise: bool = False
    lookahead: int = 0
    bound: str = "entropy"
    accelerator: str = "none"
    order: str = "random"
    guidance_interval: str = EVERYWHERE
    draft_steps: int = 0
    draft_prefill: float = 0.05
    draft_tau: float = 42.0

    def check(self, model: Model) -> None:
        """Raise ValueError (field, value, allowed) where this model cannot sample so."""
        has = ("drift", "mean") if model.prior is not None else ()
        has += ("own",) if model.head is not None else ()
        if self.method not in has:
            raise wrong("method", self.method, f"{' | '.join(has)} (in this checkpoint)")
        model.family.check_settings(self, model)
        if self.nfe < 1:
            raise wrong("nfe", self.nfe, "a whole number of at least 1")
        if self.nfe_schedule not in NFE_SCHEDULES:
            raise wrong("nfe_schedule", self.nfe_schedule, " | ".join(NFE_SCHEDULES))
        if self.nfe_schedule != "constant" and not 1 <= self.nfe_last <= self.nfe:
            raise wrong("nfe_last", self.nfe_last, f"1 to nfe {self.nfe}")
        if not 0 <= self.guidance < math.inf:
            raise wrong("guidance", self.guidance, "a number from 0")
        if self.guidance_form not in GUIDANCE_FORMS:
            raise wrong("guidance_form", self.guidance_form, " | ".join(GUIDANCE_FORMS))
        if self.guidance_form == "trained":
            self._check_trained_guidance(model)
        allowed = GUIDANCE_SCHEDULES[model.family.order]
        if self.guidance_schedule not in allowed:
            raise wrong("guidance_schedule", self.guidance_schedule, " | ".join(allowed))
        if self.spacing not in SPACINGS:
            raise wrong("spacing", self.spacing, " | ".join(SPACINGS))
        if not 0 < self.temperature < math.inf:
            raise wrong("temperature", self.temperature, "a number above 0")
        self._check_drafts(model)
        self._check_lookahead(model)
        self._check_drafter(model)

    def _check_trained_guidance(self, model: Model) -> None:
        if model.decoder is None or not model.decoder.guidance:
            allowed = "extrapolate (no scale was trained into this checkpoint)"
            raise wrong("guidance_form", "trained", allowed)
        if self.guidance < 1:
            raise wrong("guidance", self.guidance, "a number from 1")

    def _check_drafts(self, model: Model) -> None:
        steps = self.ar_steps - 1
        if self.gamma < -1 or (self.gamma > steps and steps):
            allowed = f"-1 (chosen by measuring) or 0 to {steps} (AR steps after the first)"
            raise wrong("gamma", self.gamma, allowed)
        if self.drafts and (model.draft is None or self.method != "drift"):
            why = "method drift only"
            if not model.family.drafts:
                why = "no draft head is trained on this host"
            elif model.draft is None:
                why = "no draft head in this checkpoint"
            raise wrong("gamma", self.gamma, f"0 ({why})")
        if self.rule not in RULES:
            raise wrong("rule", self.rule, " | ".join(RULES))
        if not 0 <= self.delta < math.inf:
            raise wrong("delta", self.delta, "a number from 0")
        if not (0 <= self.stop <= 1 or self.stop == early_stop.TRAINED):
            raise wrong("stop", self.stop, "auto or 0 to 1 (an entropy)")

    def _check_lookahead(self, model: Model) -> None:
        if not self.lookahead:
            return
        if model.family.order in _NO_NEXT:
            raise wrong("lookahead", self.lookahead, f"0 ({_NO_NEXT[model.family.order]})")
        if self.gamma:
            raise wrong("lookahead", self.lookahead, f"0 with gamma {self.gamma}: one or the other")
        if not -1 <= self.lookahead <= self.ar_steps:
            allowed = f"-1 (chosen by measuring) or 0 to {self.ar_steps} (tokens of an image)"
            raise wrong("lookahead", self.lookahead, allowed)
        bounds = BOUNDS if model.prior is not None else BOUNDS[:2]
        if self.bound not in bounds:
            raise wrong("bound", self.bound, f"{' | '.join(bounds)} (of this head)")

    def _check_drafter(self, model: Model) -> None:
        if not self.draft_steps:
            return
        if model.drafter is None:
            raise wrong("draft_steps", self.draft_steps, "0 without a draft model")
        if self.method != "own":
            why = "own with a draft model: its test reads the reverse steps of a diffusion head"
            raise wrong("method", self.method, why)
        for name, none in (("gamma", 0), ("accelerator", "none"), ("nfe_schedule", "constant")):
            if getattr(self, name) != none:
                raise wrong(name, getattr(self, name), f"{none} with a draft model")
        if self.ar_steps < 2:
            raise wrong("ar_steps", self.ar_steps, "at least 2 with a draft model")
        if self.draft_steps < 0:
            raise wrong("draft_steps", self.draft_steps, "a whole number from 0")
        # The last step at least is drafted, else there is nothing to check.
        most = (self.ar_steps - 1) / self.ar_steps
        if not 0 <= self.draft_prefill < most:
            raise wrong("draft_prefill", self.draft_prefill, f"0 to below {most:g}")
        if not 0 < self.draft_tau < math.inf:
            raise wrong("draft_tau", self.draft_tau, "a number above 0")

    def changed(self, **changes) -> "Settings":
        """Return these settings with the given fields changed; None leaves a field as it is.

        `auto` is allowed for `gamma` and `lookahead` (the fastest, by measuring) and `stop` (as
        trained). Looking ahead without a `delta` takes `LOOKAHEAD_DELTA`.

        Raises:
          ValueError: no such field, or a value of another kind.
        """
        changes = {k: v for k, v in changes.items() if v is not None}
        for name, auto in (("gamma", -1), ("lookahead", -1), ("stop", early_stop.TRAINED)):
            if changes.get(name) == "auto":
                changes[name] = auto
        changes = {k: _of_kind(k, v) for k, v in changes.items()}
        if changes.get("lookahead"):
            changes.setdefault("delta", LOOKAHEAD_DELTA)
        return dataclasses.replace(self, **changes)

    @property
    def drafts(self) -> int:
        """Return `gamma`, or 0 where there is nothing to draft."""
        return self.gamma if self.ar_steps > 1 else 0

    def draft_rule(self, gamma: int) -> Rule:
        """Return what the engine is asked for with so many drafts."""
        return Rule(gamma, self.rule, self.delta, self.stop)

    @property
    def speculates(self) -> bool:
        """Say whether the speculative road is taken: with drafts, or looking ahead."""
        return bool(self.drafts or self.lookahead)

    @property
    def speculation(self) -> Rule | Window:
        """Return what that road is asked for."""
        if self.lookahead:
            return Window(self.lookahead, self.delta, self.bound)
        return self.draft_rule(self.drafts)

    @property
    def plainly(self) -> "Settings":
        """Return these settings for plain decoding; equal ones share a compiled program."""
        return dataclasses.replace(self, gamma=0, lookahead=0, draft_steps=0)

    @property
    def guided(self) -> bool:
        """Say whether an unconditional branch runs."""
        learned = self.guidance_form == "trained" and self.method != "own"
        return self.guidance != 1.0 and not learned

    @property
    def branches(self) -> int:
        """Count the rows per image: conditional; none, if guided; between them that of a source
        image.
        """
        return 1 + self.guided + (self.guidance_image > 1)

    @property
    def guided_steps(self) -> tuple[int, int]:
        """Return the AR steps in which guidance acts, from the first up to before the second."""
        return guided_steps(self.ar_steps, self.guidance_interval)

    @property
    def rows(self) -> int:
        """Count the backbone rows of an image in plain decoding, all AR steps together."""
        begin, end = self.guided_steps
        return self.ar_steps * (self.branches - self.guided) + self.guided * (end - begin)

    @property
    def evaluations(self) -> int | float:
        """Count the head evaluations per AR step; their mean where they change."""
        mean = sum(self.head_steps) / self.ar_steps
        return int(mean) if mean.is_integer() else mean

    @property
    def head_steps(self) -> tuple[int, ...]:
        """Count the head evaluations of each AR step."""
        if self.method == "own" and self.accelerator == "recap":
            cheap = max(1, int(CHEAP_HEAD * self.nfe))
            return tuple(self.nfe if full else cheap for full in full_steps(self.ar_steps))
        if self.method == "own":
            return head_steps(self.nfe, self.nfe_last, self.ar_steps, self.nfe_schedule)
        return (1 if self.method == "drift" else 0,) * self.ar_steps


# What every model reads; more with an own head, by the order of its host; more by that order
# alone; more with a draft head, or a draft model. `check` refuses `gamma` and `lookahead` with
# reasons of their own.
_ALWAYS = {
    "gamma",
    "lookahead",
    "method",
    "ar_steps",
    "guidance",
    "guidance_form",
    "guidance_schedule",
    "temperature",
}
_OWN = {
    "any": {"nfe", "nfe_schedule", "nfe_last", "spacing"},
    "grid": {"nfe", "nfe_schedule", "nfe_last", "drift_scale"},
    "raster": {"nfe", "shift", "corrected", "normalise", "guidance_image"},
}
_BY_ORDER = {"raster": {"delta", "bound"}, "any": {"accelerator", "order", "guidance_interval"}}
_DRAFTS = {"rule", "delta", "stop"}
_DRAFTER = {"draft_steps", "draft_prefill", "draft_tau"}


def read_by(model: Model) -> set[str]:
    """Return the names of the settings that a model reads."""
    read = _ALWAYS | _BY_ORDER.get(model.family.order, set())
    if model.head is not None:
        read = read | _OWN[model.family.order]
    read = read | (_DRAFTER if model.drafter is not None else set())
    return read | (_DRAFTS if model.draft is not None else set())


def refuse_unread(model: Model, base: Settings, changes: dict) -> None:
    """Raise ValueError for the first change that this model would not read.

    Args:
      model: modules.
      base: settings without the changes; a change to the value that is there changes nothing.
      changes: fields; None leaves a field as it is.
    """
    # Refused and not ignored: a flag without effect would pass for a result.
    read = read_by(model)
    for name in (name for name in changes if name not in read):
        if name not in {field.name for field in dataclasses.fields(Settings)}:
            raise wrong("setting", name, " | ".join(sorted(read)))
        if changes[name] is not None and changes[name] != getattr(base, name):
            raise wrong(name, changes[name], f"{getattr(base, name)} (this model does not read it)")


_WORDS = {int: "a whole number", float: "a number", bool: "True | False", str: "text"}


def _of_kind(name: str, value):
    """The value of a field, as one of Python's own; ValueError where it is of another kind."""
    kinds = {field.name: field.type for field in dataclasses.fields(Settings)}
    if name not in kinds:
        raise wrong("setting", name, f"{', '.join(kinds)}{nearest(name, kinds)}")
    kind, original = kinds[name], value
    if isinstance(value, np.generic):
        value = value.item()
    fits = (int, float) if kind is float else kind
    # True and False are whole numbers in Python, and none to a person.
    if isinstance(value, fits) and isinstance(value, bool) == (kind is bool):
        with contextlib.suppress(OverflowError):
            return kind(value)
    raise wrong(name, original, _WORDS[kind])
