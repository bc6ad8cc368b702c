"""The flags of sampling settings, shared by the programs that sample or time sampling."""

import math
from typing import Any

from absl import flags

from driftar_jax.config import wrong

# Of an image whose other side alone is asked for.
SIDE = 512
# Settings of a draft model: CSpD's.
_DRAFTER = (
    ("draft_steps", "integer", "AR steps that the draft model makes before a check; 4."),
    ("draft_prefill", "float", "Share of the AR steps that the target makes alone first; 0.05."),
    ("draft_tau", "float", "Of the test of drafts: larger passes more; 42."),
)
# Settings that are plain values: flag, kind, help.
_PLAIN = (
    ("method", "string", "own | drift | mean; what the checkpoint holds."),
    ("ar_steps", "integer", "AR steps; the config's by default."),
    ("nfe", "integer", "Head evaluations per AR step (own head)."),
    ("nfe_schedule", "string", "constant | two_stage | linear | cosine."),
    ("nfe_last", "integer", "What --nfe falls to, unless constant."),
    ("spacing", "string", "even | trimmed; steps of the diffusion head (MAR)."),
    ("guidance", "float", "Guidance scale; 1 is none."),
    ("guidance_form", "string", "extrapolate | trained."),
    ("guidance_schedule", "string", "constant | linear | rising, over the AR steps."),
    ("guidance_interval", "string", "A,B: guidance in these AR steps alone, as shares; 0,1 (MAR)."),
    ("guidance_image", "float", "Guidance scale of a source image (prompts)."),
    ("temperature", "float", "Temperature of the head or start noise."),
    ("drift_scale", "float", "Factor of the drift of TransDiff's own sampler."),
    ("shift", "float", "Shift of the token flow head's times (prompts)."),
    ("normalise", "bool", "Normalise each token, as for guidance 7.5 (prompts)."),
    ("rule", "string", "gaussian | coupled | feature; how drafts are accepted."),
    ("delta", "float", "Bound of the rules coupled and feature, or of --lookahead (0.02)."),
    ("order", "string", "random | halton | far | chessboard; how a grid is revealed (MAR)."),
    ("accelerator", "string", "none | condition_cache | token_cache | lazymar | recap (MAR)."),
    ("bound", "string", "entropy | constant | sigma; what --delta of --lookahead is a share of."),
)


_MAKERS = {
    "string": flags.DEFINE_string,
    "integer": flags.DEFINE_integer,
    "float": flags.DEFINE_float,
    "bool": flags.DEFINE_bool,
}


def define(*without: str) -> None:
    """Define a flag for every sampling setting but those named, None where it is not given."""
    for name, kind, text in _PLAIN:
        if name not in without:
            _MAKERS[kind](name, None, text)
    flags.DEFINE_string("gamma", None, "AR steps drafted per round: a number, 0 none; or auto.")
    flags.DEFINE_string("lookahead", None, "Tokens guessed and made in a call: a number; or auto.")
    flags.DEFINE_string("stop", None, "Stop drafting below this mean entropy; 0 never, or auto.")


def define_drafter() -> None:
    """Define the flags of a second model that drafts for the first one (CSpD)."""
    flags.DEFINE_string("draft_workdir", None, "A model that drafts for this one (CSpD, MAR).")
    for name, kind, text in _DRAFTER:
        _MAKERS[kind](name, None, text)


def changes() -> dict[str, Any]:
    """Return what the flags change of the settings; None where a flag was not given.

    Raises:
      ValueError: `--gamma`, `--lookahead` or `--stop` is neither `auto` nor a number that fits.
    """
    plain = [name for name, _, _ in (*_PLAIN, *_DRAFTER) if name in flags.FLAGS]
    values = {name: flags.FLAGS[name].value for name in plain}
    return values | {
        "gamma": parse_count("gamma", flags.FLAGS.gamma),
        "lookahead": parse_count("lookahead", flags.FLAGS.lookahead),
        "stop": parse_stop(flags.FLAGS.stop),
    }


def define_size() -> None:
    """Define the flags of the size of images, for checkpoints that make images of any size."""
    flags.DEFINE_integer("height", None, "Height of the images made from prompts; 512.")
    flags.DEFINE_integer("width", None, "Width of the images made from prompts; 512.")


def size() -> tuple[int, int] | None:
    """Return height and width that the flags ask for; None where neither is given."""
    height, width = flags.FLAGS["height"].value, flags.FLAGS["width"].value
    if height is None and width is None:
        return None
    return (SIDE if height is None else height, SIDE if width is None else width)


def parse_count(name: str, text: str | None) -> int | str | None:
    """Return what a flag of that name says: `auto`, or a number; None stays None.

    Raises:
      ValueError: it is neither `auto` nor a whole number from 0.
    """
    if text is None or text == "auto":
        return text
    if not text.isdecimal():
        raise wrong(name, text, "auto or a whole number from 0")
    return int(text)


def parse_stop(text: str | None) -> float | str | None:
    """Return `Settings.stop` of a flag's text: `auto`, or a number; None stays None.

    Raises:
      ValueError: it is neither `auto` nor a number from 0 to 1.
    """
    if text is None or text == "auto":
        return text
    try:
        value = float(text)
    except ValueError:
        # It fails the comparison below as a number out of range does.
        value = math.nan
    if not 0 <= value <= 1:
        raise wrong("stop", text, "auto or 0 to 1 (an entropy)")
    return value
