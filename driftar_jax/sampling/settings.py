"""How to sample: the settings of a request, and whether a checkpoint can be sampled so."""

import dataclasses
import math

from driftar_jax.heads import diffusion, early_stop
from driftar_jax.hosts.nextstep import NextStep
from driftar_jax.hosts.schedules import NFE_SCHEDULES, head_steps
from driftar_jax.hosts.transdiff import TransDiff
from driftar_jax.model import Parts
from driftar_jax.sampling import speculative, text_sampler, verify

METHODS = ("own", "drift", "mean")
GUIDANCE_FORMS = ("extrapolate", "trained")

SPACINGS = ("even", "trimmed")
TRIMMED_LAST = 950


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
      guidance_form: `extrapolate` runs an unconditional branch beside the conditional one and
        extrapolates: the noise prediction for `own`, the decoded tokens (`u + s (c - u)`, same
        start noise) for `drift`. `trained` gives the scale to a decoder that has learned it, and
        runs the conditional branch alone.
      guidance_schedule: `linear` or `constant` over the AR steps.
      spacing: of the own head's steps: `even` from 0 to 999 as published, `trimmed` from 0 to 950,
        which is the better one for heads trained for minutes. A single step is always trimmed:
        the published rule would keep timestep 0, which denoises nothing.
      temperature: factor of the head's step noise (`own`) or of the start's noise (`drift`).
      drift_scale: factor of the drift of TransDiff's own sampler (its `scale_0`; the temperature is
        its `scale_1`); other heads do not read it.
      gamma: AR steps drafted per round of speculative decoding; 0 is plain decoding, -1 stands for
        the fastest, which is found by measuring (`gamma.py`). With one AR step there is nothing to
        draft, and decoding is plain.
      rule: what drafts are accepted by, one of `speculative.verify.RULES`.
      delta: bound of the rules `coupled` and `feature`.
      stop: tau_g of the published early stop of drafting; 0 never stops, `policy.TRAINED` takes the
        checkpoint's statistics.
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

    def check(self, parts: Parts) -> None:
        """Raises ValueError (field, value, allowed) where these modules cannot sample so."""
        has = ("own",) if parts.head is not None else ("drift", "mean")
        if self.method not in has:
            raise ValueError(
                f"method: got {self.method!r}, allowed {' | '.join(has)} (in this checkpoint)"
            )
        if isinstance(parts.host, TransDiff):
            self._check_grids(parts)
        if isinstance(parts.host, NextStep):
            text_sampler.check(self, parts)
        num_tokens = parts.images.num_tokens
        if not 1 <= self.ar_steps <= num_tokens:
            raise ValueError(
                f"ar_steps: got {self.ar_steps}, allowed 1 to {num_tokens} (one per token)"
            )
        most = TRIMMED_LAST + 1 if self.spacing == "trimmed" else diffusion.TRAIN_STEPS
        if not 1 <= self.nfe <= most:
            raise ValueError(f"nfe: got {self.nfe}, allowed 1 to {most} (spacing {self.spacing})")
        if self.nfe_schedule not in NFE_SCHEDULES:
            allowed = " | ".join(NFE_SCHEDULES)
            raise ValueError(f"nfe_schedule: got {self.nfe_schedule!r}, allowed {allowed}")
        if self.nfe_schedule != "constant" and not 1 <= self.nfe_last <= self.nfe:
            raise ValueError(f"nfe_last: got {self.nfe_last}, allowed 1 to nfe {self.nfe}")
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"guidance: got {self.guidance}, allowed a number from 0")
        if self.guidance_form not in GUIDANCE_FORMS:
            allowed = " | ".join(GUIDANCE_FORMS)
            raise ValueError(f"guidance_form: got {self.guidance_form!r}, allowed {allowed}")
        if self.guidance_form == "trained":
            if parts.decoder is None or not parts.decoder.guidance:
                raise ValueError(
                    "guidance_form: got 'trained', allowed extrapolate (no scale was trained into "
                    "this checkpoint)"
                )
            if self.guidance < 1:
                raise ValueError(f"guidance: got {self.guidance}, allowed a number from 1")
        if self.guidance_schedule not in ("linear", "constant"):
            raise ValueError(
                f"guidance_schedule: got {self.guidance_schedule!r}, allowed linear | constant"
            )
        if self.spacing not in SPACINGS:
            raise ValueError(f"spacing: got {self.spacing!r}, allowed {' | '.join(SPACINGS)}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature: got {self.temperature}, allowed a number above 0")
        self._check_drafts(parts)

    def _check_drafts(self, parts: Parts) -> None:
        steps = self.ar_steps - 1
        if self.gamma < -1 or (self.gamma > steps and steps):
            allowed = f"-1 (chosen by measuring) or 0 to {steps} (AR steps after the first)"
            raise ValueError(f"gamma: got {self.gamma}, allowed {allowed}")
        if self.drafts and (parts.draft is None or self.method != "drift"):
            why = "no draft head in this checkpoint" if parts.draft is None else "method drift only"
            raise ValueError(f"gamma: got {self.gamma}, allowed 0 ({why})")
        if self.rule not in verify.RULES:
            raise ValueError(f"rule: got {self.rule!r}, allowed {' | '.join(verify.RULES)}")
        if not 0 <= self.delta < math.inf:
            raise ValueError(f"delta: got {self.delta}, allowed a number from 0")
        if not (0 <= self.stop <= 1 or self.stop == early_stop.TRAINED):
            raise ValueError(f"stop: got {self.stop}, allowed auto or 0 to 1 (an entropy)")

    def _check_grids(self, parts: Parts) -> None:
        groups = parts.host.groups
        if self.ar_steps != groups:
            raise ValueError(
                f"ar_steps: got {self.ar_steps}, allowed {groups} (images in a row of this host)"
            )
        last = self.nfe if self.nfe_schedule == "constant" else self.nfe_last
        for field, value in (("nfe", self.nfe), ("nfe_last", last)):
            if self.method == "own" and value < 2:
                raise ValueError(f"{field}: got {value}, allowed at least 2 (of a flow head)")
        if not 0 < self.drift_scale < math.inf:
            raise ValueError(f"drift_scale: got {self.drift_scale}, allowed a number above 0")

    def changed(self, **changes) -> "Settings":
        """These settings with the given fields changed; None leaves a field as it is."""
        return dataclasses.replace(self, **{k: v for k, v in changes.items() if v is not None})

    @property
    def drafts(self) -> int:
        """`gamma`, or 0 where there is nothing to draft."""
        return self.gamma if self.ar_steps > 1 else 0

    def draft_rule(self, gamma: int) -> speculative.Rule:
        """What the engine is asked for with so many drafts."""
        return speculative.Rule(gamma, self.rule, self.delta, self.stop)

    @property
    def guided(self) -> bool:
        """Whether an unconditional branch runs."""
        return self.guidance != 1.0 and self.guidance_form == "extrapolate"

    @property
    def evaluations(self) -> int | float:
        """Head evaluations per AR step; their mean where they change."""
        mean = sum(self.head_steps) / self.ar_steps
        return int(mean) if mean.is_integer() else mean

    @property
    def head_steps(self) -> tuple[int, ...]:
        """Head evaluations of each AR step."""
        if self.method == "own":
            return head_steps(self.nfe, self.nfe_last, self.ar_steps, self.nfe_schedule)
        return (1 if self.method == "drift" else 0,) * self.ar_steps
