"""What the page asks for, and what it gets: pictures, their growth, counts and seconds.

No HTTP here: a request is a dictionary as JSON gives it, a reply one that JSON takes. Whatever a
request may say is checked before anything is compiled; a mistake is a ValueError of one line.
"""

import base64
import dataclasses
import io
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from driftar_jax import seeds
from driftar_jax.config import wrong
from driftar_jax.data import images
from driftar_jax.reports import growth
from driftar_jax.sampling import drafted, inpaint, load, plain, traces
from driftar_jax.sampling.generator import Generator

MOST_EVALUATIONS = 100
MOST_PICTURES = 4
MOST_LETTERS = 200
MOST_GUIDANCE = 10.0
# Compiled programs that are kept; each takes some MB, and every setting is one.
MOST_PROGRAMS = 48
# Moments of a growth, more than one sees, and pictures in all of them: a decoder makes each, which
# would take longer than four pictures do to draw.
_MOMENTS, _GROWN = 33, 66
_WORDS = 6000  # known words that a page is given
_EXAMPLES = 12


@dataclasses.dataclass(frozen=True)
class Head:
    """One checkpoint: its folder, as `--workdir` gave it, and what was read of it."""

    workdir: str
    generator: Generator
    vae: str | None = None


@dataclasses.dataclass(frozen=True)
class Pair:
    """Drift-AR, and the own head that it is shown beside; None: there is none."""

    drift: Head
    own: Head | None

    def head(self, name: str) -> Head:
        """Return the head `drift` or `own`; ValueError where there is none of that name."""
        heads = {"drift": self.drift} | ({"own": self.own} if self.own else {})
        if not isinstance(name, str) or name not in heads:
            raise wrong("head", name, " | ".join(heads))
        return heads[name]


def read(drift: str, own: str | None, vae: str | None = None) -> Pair:
    """Read a pair of workdirs.

    Raises:
      ValueError: one cannot be read, they make different pictures, or their heads are not these.
    """
    heads = [Head(w, load.load(w, vae=vae), vae) for w in (drift, own) if w]
    first, *others = [head.generator for head in heads]
    if first.model.decoder is None:
        raise wrong("workdir", drift, "a run of task drift or draft, or an export of one")
    if first.reader.takes == "prompts" or first.to_pixels is None:
        # First the generator's own complaint, a missing autoencoder say: it tells what to do about
        # it.
        first.check(first.settings())
        raise wrong("workdir", drift, "a run trained here: classes, or captions of its own words")
    if first.model.images.edits:
        raise wrong("workdir", drift, "a run without source pictures (edits are drawn by sample)")
    for other in others:
        if other.model.head is None:
            raise wrong("baseline", own, "a run of task host: the own head")
        if _makes(other) != _makes(first):
            raise wrong("baseline", own, f"a run that makes the pictures of {drift}")
    return Pair(heads[0], heads[1] if others else None)


def _makes(generator: Generator):
    images = generator.model.images
    return generator.model.family.name, images.class_names, inpaint.pixel_shape(generator)


class Studio:
    """All pairs, and which programs are there; used by one thread at a time."""

    def __init__(self, pairs: Sequence[Pair]):
        """Nothing is compiled yet."""
        self.pairs = list(pairs)
        self._programs: set = set()

    def describe(self) -> list[dict]:
        """Return what a page has to know of every pair."""
        return [_described(pair) for pair in self.pairs]

    def draw(self, request: Mapping[str, Any]) -> dict:
        """Draw with one head.

        Args:
          request: `model`, a number; `head`, `own` or `drift`; `prompt`, or `label` (a name); and
            what differs from the checkpoint's own: `seed`, `num`, `nfe`, `ar_steps`, `guidance`,
            `lookahead`.

        Returns:
          `title`, `seconds`, `compiling`, `counts` as of `counts.json`, `lookahead`, `sheet` (a PNG
          whose rows are moments and whose columns are pictures), `moments`, `entropy` (for each
          moment and picture the N entropies as 0 to 254 in base64, 255 where there is none),
          `python` and `command` that make the same pictures.

        Raises:
          ValueError: a request that does not fit; nothing was compiled.
        """
        pair = self._pair(request)
        head = pair.head(request.get("head", "drift"))
        generator, changes = head.generator, _changes(head, request)
        settings = generator.checked(**changes)
        num = _number(request, "num", int, 1, MOST_PICTURES, 1)
        seed = seeds.check_seed(_number(request, "seed", int, 0, 2**31 - 1, 0))
        wanted = [_wanted(generator, request)] * num
        condition = generator.conditions(wanted, seed, settings)
        # What decides a compiled program. Seed and condition do not: they are its arguments.
        program = id(generator), settings, num
        grown = traces.grow(generator, settings, condition, seed, self._fresh(program))
        samples = grown.samples
        moments, entropy = _grown(generator, samples)
        return {
            "title": growth.title_of(settings),
            "seconds": grown.seconds,
            "compiling": grown.compiling,
            "counts": _counts(samples),
            "lookahead": settings.lookahead,
            "num": num,
            "moments": len(moments),
            "sheet": _png(moments),
            "entropy": entropy,
            **_recipes(head, wanted, seed, changes, samples.images.shape),
        }

    def fill(self, request: Mapping[str, Any]) -> dict:
        """Fill in a part of a picture several times, by Drift-AR.

        Args:
          request: as for `draw`, and `image` and `mask`, PNG in base64; the white part of the mask
            is made anew.

        Returns:
          `seconds`, `compiling`, `counts`, `sheet` (one row of pictures) and `num`.

        Raises:
          ValueError: a request that does not fit; nothing was compiled.
        """
        head = self._pair(request).drift
        generator, changes = head.generator, _changes(head, request)
        inpaint.check(generator)
        height, width, channels = inpaint.pixel_shape(generator)
        image = _picture(request, "image", channels, (width, height))
        mask = _picture(request, "mask", 1, (width, height))[..., 0] >= 128
        num = _number(request, "num", int, 1, MOST_PICTURES, MOST_PICTURES)
        seed = seeds.check_seed(_number(request, "seed", int, 0, 2**31 - 1, 0))
        wanted = [_wanted(generator, request)] * num
        settings = generator.checked(**changes)
        # How many tokens a hole has decides the program.
        unknown = int((~inpaint.known_tokens(generator, mask)).sum())

        def make():
            return inpaint.fill(generator, image, mask, wanted, seed, settings=settings)

        timing = traces.timed(make, self._fresh((id(generator), settings, num, unknown)))
        samples = timing.samples
        return {
            "seconds": timing.seconds,
            "compiling": timing.compiling,
            "counts": _counts(samples),
            "num": num,
            "moments": 1,
            "sheet": _png(samples.images[None]),
        }

    def warm(self) -> None:
        """Compile what every pair draws with if nothing is changed."""
        for number, pair in enumerate(self.pairs):
            start = _described(pair)
            request = {"model": number, "label": start["classes"][0]}
            if start["text"]:
                request["prompt"] = start["examples"][0]
            for head in ("drift", "own") if pair.own else ("drift",):
                self.draw({**request, "head": head})

    def _pair(self, request: Mapping[str, Any]) -> Pair:
        if not isinstance(request, Mapping):
            raise wrong("request", type(request).__name__, "an object of fields")
        return self.pairs[_number(request, "model", int, 0, len(self.pairs) - 1, 0)]

    def _fresh(self, program) -> bool:
        """Say whether a program may have to be compiled, and remember that it is there."""
        if program in self._programs:
            return False
        if len(self._programs) >= MOST_PROGRAMS:
            # JAX forgets all programs of a function at once. Those still wanted are compiled again.
            for road in (plain.generate, drafted.generate):
                road.clear_cache()
            self._programs.clear()
        self._programs.add(program)
        return True


def _counts(samples) -> dict[str, float]:
    return {name: float(value) for name, value in dataclasses.asdict(samples.counts).items()}


def _described(pair: Pair) -> dict:
    generator = pair.drift.generator
    images, settings = generator.model.images, generator.settings()
    order, text = generator.model.family.order, generator.reader.takes == "captions"
    height, width, channels = inpaint.pixel_shape(generator)
    learned = settings.guidance_form == "trained"
    # A decoder that learned guidance takes the scales of its training and no larger ones.
    most = float(generator.config.drift.guidance_max) if learned else MOST_GUIDANCE
    own = pair.own and pair.own.generator.settings()
    return {
        "name": pair.drift.workdir.rstrip("/").rpartition("/")[2],
        "workdir": pair.drift.workdir,
        "baseline": pair.own.workdir if pair.own else None,
        "text": text,
        "classes": list(images.class_names),
        "examples": _examples(generator) if text else [],
        "words": _words(generator) if text else None,
        "size": [height, width, channels],
        "grid": list(images.grid),
        "nfe": min(own.nfe, MOST_EVALUATIONS) if own else None,
        "least_nfe": 1 if order == "any" else 2,
        "ar_steps": settings.ar_steps,
        "most_ar_steps": images.num_tokens if order == "any" else settings.ar_steps,
        "guidance": settings.guidance,
        "most_guidance": most,
        "lookahead": images.num_tokens if order == "raster" else None,
        "fills": order == "any",
        "grows": traces.can(generator.model, settings),
    }


def _examples(generator: Generator) -> list[str]:
    """Captions of different classes, spread over the set."""
    classes = np.linspace(0, generator.model.images.num_classes - 1, _EXAMPLES).astype(int)
    return list(dict.fromkeys(generator.reader.texts(classes.tolist(), seed=1)))


def _words(generator: Generator) -> list[str] | None:
    """Words that the captions have, frequent ones first; None where pieces of words are read."""
    known = generator.reader.book.known_words()
    return None if known is None else known[:_WORDS]


def _changes(head: Head, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a request changes for a head, within the limits of the page."""
    model, base = head.generator.model, head.generator.settings()
    order = model.family.order
    changes: dict[str, Any] = {}
    if model.head is not None:
        changes["nfe"] = _number(request, "nfe", int, 1, MOST_EVALUATIONS, None)
    if order == "any":
        changes["ar_steps"] = _number(request, "ar_steps", int, 1, model.images.num_tokens, None)
    if order == "raster" and model.head is None:
        changes["lookahead"] = _number(request, "lookahead", int, 0, model.images.num_tokens, None)
    changes["guidance"] = _number(request, "guidance", float, 1, MOST_GUIDANCE, None)
    # A value that is the checkpoint's own is no change, and would only lengthen the recipe.
    return {k: v for k, v in changes.items() if v is not None and v != getattr(base, k)}


def _number(request, name: str, kind: type, low, high, default):
    """Return a number of a request; ValueError where it is none or out of range."""
    value = request.get(name)
    if value is None:
        return default
    # Scripts write whole numbers as 1.0 as well. A bool is an int in Python, and is no number here.
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise wrong(name, value, f"{low} to {high}")
    if kind is int and not whole:
        raise wrong(name, value, f"a whole number, {low} to {high}")
    return kind(value)


def _wanted(generator: Generator, request: Mapping[str, Any]) -> str:
    """Return the text or the name of the class that is asked for."""
    name = "prompt" if generator.reader.takes == "captions" else "label"
    text = request.get(name)
    if not isinstance(text, str) or not text.strip():
        raise wrong(name, text, "text")
    if len(text) > MOST_LETTERS:
        raise wrong(name, f"{len(text)} letters", f"at most {MOST_LETTERS}")
    return text


def _picture(request, name: str, channels: int, size: tuple[int, int]) -> np.ndarray:
    """Return a picture of a request, uint8; ValueError where it is none, or of another size."""
    text = request.get(name)
    allowed = f"a PNG of {size[1]}x{size[0]} in base64"
    if not isinstance(text, str):
        raise wrong(name, type(text).__name__, allowed)
    try:
        file = io.BytesIO(base64.b64decode(text.rpartition(",")[2], validate=True))
        # One format alone: every other decoder of the library would be open to whoever sends bytes.
        with Image.open(file, formats=["PNG"]) as picture:
            if picture.size != size:  # before it is unpacked
                raise wrong(name, f"{picture.height}x{picture.width}", allowed)
        # As `sample` reads them: what is transparent in a mask is not drawn on.
        kept = dict(size=None, center_crop=False, background=0 if name == "mask" else 255)
        return images.decode(file, channels=channels, **kept)
    # The library says of some damaged PNG files that their syntax is wrong, and refuses by itself
    # those that declare more pixels than any memory holds.
    except (OSError, SyntaxError, Image.DecompressionBombError, images.BadImage) as error:
        raise wrong(name, type(error).__name__, allowed) from None
    except ValueError as error:
        # The complaint about the size, raised above, comes by here too and is passed on as it is.
        raise (error if ": got " in str(error) else wrong(name, "no base64", allowed)) from None


def _grown(generator: Generator, samples) -> tuple[np.ndarray, list[list[str]] | None]:
    """Return moments `[S, n, H, W, C]` and entropies; without a trace, nothing and the end."""
    if samples.trace is None:
        blank = np.full_like(samples.images, traces.BLANK)
        return np.stack([blank, samples.images]), None
    steps = traces.moments(samples.trace, min(_MOMENTS, _GROWN // len(samples.images)))
    entropy = []
    for step in steps:
        values = traces.entropy(samples.trace, step)
        # A byte each: as numbers in JSON the entropies of a growth would be many times as long.
        codes = np.where(np.isnan(values), 255, np.nan_to_num(values) * 254).astype(np.uint8)
        entropy.append([base64.b64encode(row.tobytes()).decode() for row in codes])
    return traces.pictures(generator, samples.trace, steps), entropy


def _png(moments: np.ndarray) -> str:
    """`[S, n, H, W, C]` as one PNG in base64: a row for each moment, a column for each picture."""
    # One file for all moments, which the page cuts up: a second request would have to wait its
    # turn.
    rows, columns, height, width, channels = moments.shape
    sheet = moments.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)
    file = io.BytesIO()
    # It goes to a browser of this machine: a smaller file would take longer to make than to send.
    Image.fromarray(sheet[..., 0] if channels == 1 else sheet).save(file, "PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()


def _recipes(head: Head, wanted: list[str], seed: int, changes: dict, shape) -> dict[str, str]:
    """Return the Python and the command that make the same pictures."""
    folder = repr(head.workdir) + (f", vae={head.vae!r}" if head.vae else "")
    options = "".join(f", {name}={value!r}" for name, value in changes.items())
    labels = f"[{wanted[0]!r}]" + (f" * {len(wanted)}" if len(wanted) > 1 else "")
    shown = "[" + ", ".join(map(str, shape)) + "]"
    python = (
        "import driftar_jax\n\n"
        f"model = driftar_jax.load({folder})\n"
        f"samples = model.sample({labels}, seed={seed}{options})\n"
        f"images = samples.images  # uint8 {shown}\n"
    )
    name = "prompt" if head.generator.reader.takes == "captions" else "labels"
    words = [f"--workdir={head.workdir}", *([f"--vae={head.vae}"] if head.vae else [])]
    words += [f"--{name}={wanted[0]}", f"--num={len(wanted)}", f"--seed={seed}"]
    words += [f"--{field}={value:g}" for field, value in changes.items()] + ["--out=pictures"]
    # A caption may hold spaces and quotes: pasted into a shell it must stay one word, and only
    # that.
    command = "python -m driftar_jax.sample " + " ".join(map(shlex.quote, words))
    return {"python": python, "command": command}
