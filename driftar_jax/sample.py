r"""Generate images from a checkpoint.

python -m driftar_jax.sample --workdir=runs/drift --num=64 --out=runs/drift/images
python -m driftar_jax.sample --workdir=runs/mar_base --vae=runs/kl16 --num=4 --out=runs/images
python -m driftar_jax.sample --workdir=runs/drift --image=shoe.png --mask=heel.png --out=runs/heels
python -m driftar_jax.sample --workdir=runs/drift_next --prompt="red heart, heart" --out=runs/hearts
python -m driftar_jax.sample --workdir=runs/converted --vae=runs/f8 --image=fox.png \
    --prompt="<image> in the snow" --out=runs/edits
python -m driftar_jax.sample --workdir=runs/drift --num=8 --dry_run --target=tpu:v5e:1x1
python -m driftar_jax.sample --workdir=runs/drift --num=50000 --layout=adm --out=runs/adm
python -m driftar_jax.sample --workdir=runs/drift --num=50000 --warm
python -m driftar_jax.sample --workdir=runs/drift --baseline=runs/own --trace --out=runs/growth
python -m driftar_jax.sample --workdir=runs/mar_huge --draft_workdir=runs/mar_base \
    --vae=runs/kl16 --num=4 --out=runs/checked
python -m driftar_jax.sample --workdir=runs/drift --num=50000 --out=/shared/adm --layout=adm \
    --num_processes=4 --process_id=0

Pictures are written as they are made. A command that was stopped goes on where it was when it is
given again. Several processes, started with the same command and a number each, or by `srun`, share
the images of one folder. With `--dry_run --target` nothing is drawn: the compiler of that chip says
what the sampler needs there. With `--warm` the command's own programs are compiled and kept, for
the same command without it.
"""

import dataclasses
import hashlib
import os
import pathlib
import sys
import time

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from driftar_jax import seeds
from driftar_jax.cli import program as cli
from driftar_jax.cli import sampling_flags, target_flags
from driftar_jax.config import wrong
from driftar_jax.data import images, labels, pictures, prompt_files
from driftar_jax.reports import growth, layouts, sheet
from driftar_jax.sampling import dry_run, inpaint, load, traces
from driftar_jax.sampling.conditions import Request
from driftar_jax.sharding import make_mesh
from driftar_jax.storage import compiled
from driftar_jax.storage.jsons import write_json
from driftar_jax.training import processes

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder written by train or convert.")
_OUT = flags.DEFINE_string("out", None, "New folder for grid.png, single files and counts.json.")
_VAE = flags.DEFINE_string("vae", None, "Folder of the autoencoder, where tokens are latents.")
_NUM = flags.DEFINE_integer("num", 64, "How many images; of prompts, one each by default.")
_LABELS = flags.DEFINE_string("labels", "", "Class numbers or names, in turn; all by default.")
_PROMPT = flags.DEFINE_multi_string("prompt", [], "Text of an image; may be given several times.")
_IMAGE = flags.DEFINE_multi_string(
    "image", [], "Source of an edit, one per --prompt; or with --mask."
)
_MASK = flags.DEFINE_string("mask", None, "Picture whose white part of --image is generated anew.")
_NEGATIVE = flags.DEFINE_string("negative", "", "Prompt that guidance leads away from.")
_POSITIVE = flags.DEFINE_string("positive", "", "Text put behind every prompt.")
_PROMPTS = flags.DEFINE_string(
    "prompts", None, "Prompts of a file: one a line, GenEval's .jsonl, DPG's folder, MJHQ's .json."
)
_LAYOUT = flags.DEFINE_string("layout", "flat", f"{' | '.join(layouts.NAMES)}.")
_WARM = flags.DEFINE_bool("warm", False, "Compile what this command would run, and end.")
_SEED = flags.DEFINE_integer("seed", 0, "Root of the randomness.")
_BATCH = flags.DEFINE_integer("batch_size", None, "Images per call; 256, of converted prompts 1.")
_DTYPE = flags.DEFINE_enum(
    "dtype", None, load.TYPES, "Of activations and products; what the run was trained in."
)
_FSDP = flags.DEFINE_integer("mesh_fsdp", 1, "Devices over which widths are split (converted).")
_TENSOR = flags.DEFINE_integer("mesh_tensor", 1, "Devices over which heads are split (converted).")
_TRACE = flags.DEFINE_boolean(
    "trace", False, "Also growth.gif and growth.png: the first pictures AR step by AR step."
)
_SHEET = flags.DEFINE_boolean(
    "sheet", False, "Draw what held-out pictures show: sheet.png has --num (12) of them beside."
)
_REAL = flags.DEFINE_string("real", None, "Of --sheet: the image set; that of the training.")
_BASELINE = flags.DEFINE_string(
    "baseline", None, "Of --trace: the workdir of the own head, drawn beside, with its --nfe."
)
_COUNT = flags.DEFINE_integer("num_processes", 0, "Processes that share the images of one OUT.")
_INDEX = flags.DEFINE_integer("process_id", -1, "Number of this process, from 0.")
sampling_flags.define()
sampling_flags.define_drafter()
sampling_flags.define_size()
target_flags.define()
flags.mark_flag_as_required("workdir")

SHOWN = 64  # pictures of grid.png
MOST_TEXTS = 1000  # of counts.json; the manifest has the hash of all


def main(_) -> None:
    """Sample into `--out`, where a stopped command goes on; or say what it would take."""
    with cli.user_errors():
        target = target_flags.described()
        if _WARM.value and (target is not None or _MASK.present):
            name = "mask" if _MASK.present else "target"
            raise wrong("warm", True, f"false with --{name}")
        # Processes share the images by their numbers: none needs to know of another.
        share = processes.share(os.environ, _COUNT.value, _INDEX.value)
        if share[1] > 1 and _MASK.present:
            raise wrong("num_processes", share[1], "1 with --mask")
        draws = target is None and not _WARM.value
        # Before the checkpoint is read, which takes longer than to see that a folder is taken.
        out = _out_folder(_OUT.value, leads=share[0] == 0) if draws else None
        _check_texts()
        prompts = _prompts()
        for flag in (_NUM, _BATCH, _FSDP, _TENSOR):
            if flag.value is not None and flag.value < 1:
                raise wrong(flag.name, flag.value, "a whole number of at least 1")
        seeds.check_seed(_SEED.value)
        generator = _load()
        # With `--sheet` the held-out pictures say what is asked for, in place of labels and
        # prompts.
        originals = _originals(generator)
        classes, texts = _subjects(generator, prompts) if originals is None else originals.request
        subjects = classes if texts is None else texts
        hole = _hole(generator)
        request = _request(len(subjects))
        sized = generator.sized(request)
        baseline, changes = _baseline(), sampling_flags.changes()
        settings = sized.checked(**growth.own_changes(baseline, generator.model, changes))
        condition = sized.conditions(subjects, _SEED.value, settings, request)
        if texts is not None and generator.reader.takes == "captions":
            _tell_unknown(generator.reader.unknown(texts))
        heads = [growth.Head(sized, settings, condition)]
        if baseline is not None:
            heads.insert(0, growth.beside(baseline, changes, subjects, _SEED.value))
        if hole is not None and generator.model.drafter is not None:
            raise wrong("draft_workdir", flags.FLAGS.draft_workdir, "none with --mask")
        if _TRACE.value:
            if hole is not None:
                raise wrong("trace", True, "false with a mask")
            for head in heads:
                traces.check(head.generator.model, head.settings)
    if target is not None:
        with cli.user_errors():
            # One call is compiled, whatever number of images is asked for.
            few = jax.tree.map(lambda a: a[: sized.batch(_BATCH.value)], condition)
            print("\n".join(dry_run.lines(sized, settings, few, target)))
        return
    if _WARM.value:
        print(_warm(sized, settings, condition))
        return
    with cli.user_errors():
        layout = _layout(classes, texts, prompts, generator.model.images.class_names)
        facts = _facts(generator, settings, request)
        if hole is None:
            # From here on the folder is this command's: stopped, it goes on where it was.
            layout.begin(facts, leads=share[0] == 0)
    cli.loaded(f"{_WORKDIR.value}: step {generator.step}")
    if settings.gamma and not settings.drafts:
        print("gamma: one AR step makes the whole image, so there is nothing to draft: plain")
    # An image follows from the seed and its number alone, so those that are there need not be made
    # again.
    wanted = layout.missing(*share)
    if share[1] > 1:
        print(f"{out}: {len(wanted)} images of process {share[0]} of {share[1]} are to be made")
    elif len(wanted) < layout.count:
        print(f"{out}: {layout.count - len(wanted)} of {layout.count} images are there")
    counts = {}
    if hole is not None:
        with cli.user_errors():
            samples = inpaint.fill(
                sized, *hole, subjects, _SEED.value, batch_size=_BATCH.value, settings=settings
            )
            layout.begin(facts)
        for number in wanted:
            layout.write(number, samples.images[number])
        counts = {"per_image": dataclasses.asdict(samples.counts), "images": len(subjects)}
    elif wanted:
        settings = sized.with_draft_count(settings, condition, _BATCH.value)
        counts = _stream(sized, settings, condition, layout, wanted)
    # The first process alone writes what is about all images, once they are all there.
    if share[0] > 0:
        return
    with cli.stops():
        layout.wait()
    layout.finish()
    shown = layout.first(SHOWN)
    if texts is None:
        few = classes[: len(shown)]
        pictures.save_by_class(out / "grid.png", shown, few, generator.model.images.class_names)
    else:
        pictures.save_grid(out / "grid.png", shown)
        pictures.save_captioned(out / "prompts.png", shown, texts)
    if originals is not None:
        firsts = layout.first(len(originals.names))
        sheet.write(out / "sheet.png", originals.images, firsts, originals.names)
    if _TRACE.value:
        names = generator.model.images.class_names
        names = texts or [names[n] if n >= 0 else "no class" for n in classes]
        print(growth.show(out, heads, names, _SEED.value))
    if counts:
        asked_for = {} if texts is None else {"prompts": texts[:MOST_TEXTS]}
        write_json(out / "counts.json", counts | asked_for | _settled(settings, generator.step))
        print(f"{out}: {len(wanted)} images, {counts['per_image']}")


def _warm(sized, settings, condition) -> str:
    """Compile ahead of the same command without `--warm`; return a line."""
    folder, started = compiled.place(), time.perf_counter()
    if folder is None:
        with cli.user_errors():
            raise wrong("warm", True, "false where no programs are kept (--compile_cache)")
    settings = sized.with_draft_count(settings, condition, _BATCH.value)
    sized.compile_ahead(settings, condition, _SEED.value, _BATCH.value)
    return f"compiled in {time.perf_counter() - started:.1f} s, kept in {folder}"


def _tell_unknown(words: list[str]) -> None:
    """Say in one line which words of the prompts mean nothing to the checkpoint."""
    if words:
        shown = ", ".join(words[:8]) + (", ..." if len(words) > 8 else "")
        print(f"prompt: not in any caption of the training set: {shown}", file=sys.stderr)


def _originals(generator) -> sheet.Originals | None:
    """Return the pictures of `--sheet`, or None."""
    if not _SHEET.value:
        if _REAL.value is not None:
            raise wrong("real", _REAL.value, "none without --sheet")
        return None
    for name in ("prompt", "prompts", "labels", "image", "mask"):
        if flags.FLAGS[name].present:
            raise wrong(name, flags.FLAGS[name].value, "none beside --sheet")
    number = _NUM.value if flags.FLAGS["num"].present else sheet.PAIRS
    return sheet.real(generator, _REAL.value, number)


def _baseline():
    """Return the generator of `--baseline`, or None."""
    if _BASELINE.value is None:
        return None
    if not _TRACE.value:
        raise wrong("baseline", _BASELINE.value, "none without --trace")
    return load.load(_BASELINE.value, vae=_VAE.value)


def _settled(settings, step: int) -> dict:
    return {"settings": dataclasses.asdict(settings), "seed": _SEED.value, "step": step}


def _stream(sized, settings, condition, layout, wanted) -> dict:
    """Write the images as they are made; return what they cost."""
    parts, started, first = [], time.perf_counter(), None
    size = min(sized.batch(_BATCH.value), len(wanted))
    print(f"compiling, or finding what was kept, for {size} images a call", flush=True)
    with tqdm(total=len(wanted), unit="image", disable=None, leave=False) as bar:
        for part in sized.stream(settings, condition, _SEED.value, _BATCH.value, wanted):
            for number, image in zip(part.numbers.tolist(), part.images, strict=True):
                layout.write(number, image)
            parts.append(part.counts)
            bar.update(len(part.numbers))
            # The first call compiles: its seconds stand apart, or the rest would look slower than
            # it is.
            if first is None:
                first = time.perf_counter() - started
                number = len(part.numbers)
                print(f"{number} images after {first:.1f} s, compilation included")
    counts, speculation = sized.summary(parts, len(wanted), settings)
    rest = time.perf_counter() - started - first
    return {
        "per_image": dataclasses.asdict(counts),
        "images": len(wanted),
        "gamma": settings.gamma if speculation else 0,
        "speculation": speculation,
        "seconds": {
            "first call, compilation included": round(first, 3),
            "further calls": round(rest, 3),
        },
    }


def _prompts() -> prompt_files.Prompts | None:
    """Return the prompts of `--prompts`, or None."""
    if _PROMPTS.value is None:
        return None
    for name in ("prompt", "num", "image", "labels"):
        if flags.FLAGS[name].present:
            raise wrong(name, flags.FLAGS[name].value, "none beside --prompts")
    prompts = prompt_files.read("prompts", _PROMPTS.value)
    if prompts.left_out:
        print(f"{_PROMPTS.value}: left out of prompts: {prompts.left_out}", file=sys.stderr)
    return prompts


def _layout(classes, texts, prompts, names) -> layouts.Layout:
    """Return where the pictures of a request go."""
    if texts is None:
        # Names in the files, so that a folder of pictures can be read without its manifest.
        called = [labels.for_file(number, names[number]) for number in classes.tolist()]
        named = {"count": len(classes), "labels": called}
    else:
        items = tuple(prompt_files.Prompt(text, f"{i:05d}") for i, text in enumerate(texts))
        named = {"prompts": prompts or prompt_files.Prompts("lines", items)}
    return layouts.Layout(_LAYOUT.value, _OUT.value, **named)


def _facts(generator, settings, request: Request) -> dict:
    """Return what the images follow from, beside labels and prompts."""
    sources = [hashlib.sha256(image.tobytes()).hexdigest() for image in request.sources]
    files = [*_IMAGE.value, *filter(None, [_MASK.value])]
    return {
        "checkpoint": _WORKDIR.value,
        "seeds": "the noise of image i follows from (seed, i) alone",
        "asked_size": request.size,
        "dtype": _DTYPE.value,
        "positive": request.positive,
        "negative": request.negative,
        "sources": sources,
        "files": [hashlib.sha256(pathlib.Path(f).read_bytes()).hexdigest() for f in files],
        **({"draft": flags.FLAGS.draft_workdir} if settings.draft_steps else {}),
        **_settled(settings, generator.step),
    }


def _load():
    """Return the generator of the workdir, laid out over the mesh that is asked for."""
    split = flags.FLAGS["mesh_fsdp"].present or flags.FLAGS["mesh_tensor"].present
    mesh = make_mesh(fsdp=_FSDP.value, tensor=_TENSOR.value) if split else None
    generator = load.load(_WORKDIR.value, vae=_VAE.value, mesh=mesh, dtype=_DTYPE.value)
    if split and generator.reader.takes != "prompts":
        name = "mesh_fsdp" if flags.FLAGS["mesh_fsdp"].present else "mesh_tensor"
        allowed = "none: this checkpoint lies on every device as a whole"
        raise wrong(name, flags.FLAGS[name].value, allowed)
    if flags.FLAGS.draft_workdir is not None:
        generator = generator.with_drafter(load.load(flags.FLAGS.draft_workdir, dtype=_DTYPE.value))
    return generator


def _subjects(generator, prompts) -> tuple[np.ndarray | None, list[str] | None]:
    """Return the classes that are asked for, or the texts; the other is None.

    Raises:
      ValueError: labels and prompts do not fit the checkpoint, or each other.
    """
    takes, texts = generator.reader.takes, _PROMPT.value
    if prompts is not None and takes != "classes":
        each = layouts.PER_PROMPT.get(_LAYOUT.value, 1)
        return None, [item.text for item in prompts.items for _ in range(each)]
    if takes == "classes":
        for name in ("prompt", "prompts", *(() if _MASK.present else ("image",))):
            if flags.FLAGS[name].present:
                allowed = "none: this checkpoint makes images of classes, by --labels"
                raise wrong(name, flags.FLAGS[name].value, allowed)
        return _labels(generator.model.images.class_names), None
    if takes == "prompts" and _LABELS.present:
        raise wrong("labels", _LABELS.value, "none: this checkpoint takes --prompt")
    if takes == "prompts" and not texts:
        raise wrong("prompt", None, "at least one --prompt")
    if takes == "captions" and not texts:
        classes = _labels(generator.model.images.class_names)
        return classes, generator.reader.texts(classes, _SEED.value)
    if _LABELS.present:
        raise wrong("labels", _LABELS.value, "none beside --prompt")
    for text in texts:
        if not text.strip():
            raise wrong("prompt", text, "text")
    return None, [texts[i % len(texts)] for i in range(_count(texts))]


def _check_texts() -> None:
    """Refuse names of files in the place of texts."""
    texts = [("prompt", text) for text in _PROMPT.value]
    texts += [("positive", _POSITIVE.value), ("negative", _NEGATIVE.value)]
    for name, text in texts:
        if text.startswith("@") and len(text.split()) == 1:
            more = f"; the prompts of a file by --prompts={text[1:]}" if name == "prompt" else ""
            raise wrong(name, text, f"text{more}")


def _count(texts: list[str]) -> int:
    return _NUM.value if flags.FLAGS["num"].present else len(texts)


def _request(number: int) -> Request:
    """Return what is asked for beside labels and texts."""
    sources = [] if _MASK.present else [_picture(path) for path in _IMAGE.value]
    if sources and _PROMPT.value and len(sources) != len(_PROMPT.value):
        allowed = f"one per --prompt, {len(_PROMPT.value)}"
        raise wrong("image", f"{len(sources)} images", allowed)
    sources = [sources[i % len(sources)] for i in range(number)] if sources else []
    return Request(sampling_flags.size(), sources, _POSITIVE.value, _NEGATIVE.value)


def _picture(path: str) -> np.ndarray:
    """Return a source image as uint8 `[h, w, 3]`; ValueError where it is none."""
    try:
        return images.decode(path, channels=3, size=None, center_crop=False)
    except images.BadImage as error:
        raise wrong("image", path, f"a picture ({error})") from None


def _hole(generator) -> tuple[np.ndarray, np.ndarray] | None:
    """Return image and mask to fill in, or None."""
    if not _MASK.present:
        return None
    if len(_IMAGE.value) != 1:
        number = len(_IMAGE.value)
        raise ValueError(f"image: got {number} of them, allowed one together with --mask")
    inpaint.check(generator)
    return inpaint.read(_IMAGE.value[0], _MASK.value, inpaint.pixel_shape(generator)[-1])


def _out_folder(path: str | None, leads: bool) -> pathlib.Path:
    """Refuse a folder of something else, before anything is read; `Layout.begin` looks closer."""
    if path is None:
        raise ValueError("out: got nothing, allowed --out=VALUE")
    out = pathlib.Path(path)
    if not leads:
        return out
    if out.exists() and (
        not out.is_dir() or (any(out.iterdir()) and not (out / layouts.MANIFEST).exists())
    ):
        raise wrong("out", path, "a new or empty folder, or one of the same command")
    return out


def _labels(names: tuple[str, ...]) -> np.ndarray:
    """Return `--num` class numbers, going round through `--labels` or all classes."""
    words = labels.words(_LABELS.value, names)
    numbers = labels.numbers(words, names) if words else range(len(names))
    return np.resize(np.asarray(numbers, np.int32), _NUM.value)


if __name__ == "__main__":
    cli.run(main)
