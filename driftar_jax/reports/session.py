"""One evaluation: checks what it is given, measures, writes the report."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from driftar_jax import config
from driftar_jax.cli import program
from driftar_jax.data import pictures
from driftar_jax.evaluation import compare, frechet, judges, networks, premise, quality
from driftar_jax.evaluation.stopwatch import Ledger
from driftar_jax.features import inception
from driftar_jax.reports import report
from driftar_jax.sampling import contexts, generator, inpaint
from driftar_jax.training import journal

SHOWN = 64
# What a Drift-AR run may log and a reader wants to see.
_CURVES = ("loss", "energy_score", "mu", "draft_reg", "spread", "strength_0.2")
MAPPED = 8
# Images whose unknown tokens both heads draw, and how often each.
HELD_OUT, DRAWS = 128, 8


@dataclasses.dataclass(frozen=True)
class Session:
    """Everything an evaluation needs, checked."""

    runs: Sequence[compare.Runs]
    classifier: networks.Network
    network: networks.Network
    network_dir: str
    reference: frechet.Moments | None
    metrics: tuple[str, ...]
    workdirs: dict[str, str]
    images: np.ndarray
    labels: np.ndarray
    captions: list[str] | None
    num_training: int
    out: pathlib.Path
    num: int
    seeds: int
    batch_sizes: tuple[int, ...]
    extras: compare.Extras

    def run(self) -> str:
        """Measure and write everything; returns the verdict, the tables and the times."""
        ledger = Ledger()
        real = quality.RealSet(
            self.network,
            self.classifier,
            self.images,
            self.labels,
            self.num_training,
            metrics=self.metrics,
            reference=self.reference,
            ledger=ledger,
        )
        # Written before the long part: other evaluations may be held against the same moments.
        frechet.write(self.out / "reference.npz", real.moments, self.network.name)
        rows = compare.measure(
            self.runs,
            real,
            num=self.num,
            sampling_seeds=self.seeds,
            batch_sizes=self.batch_sizes,
            extras=self.extras,
        )
        reached = report.RealRow(
            network=self.network.name,
            num_classes=self.classifier.num_classes,
            pictures=self.num * self.seeds * len(self.runs),
            floor=real.floor(),
            quality=quality.summary([real.quality(self.num, seed) for seed in range(self.seeds)]),
        )
        with ledger("premise and pictures"):
            premises = {
                name: self._premise(loaded)
                for name, loaded in (
                    ("own head alone", self.first.own),
                    ("Drift-AR", self.first.drift),
                )
                # Where a row stands for several tokens, no token has an entropy of its own.
                if premise.measurable(loaded.model)
            }
            scores = self._held_out()
            images = self._pictures(premises)
        facts = self._facts(real.accuracy) | {"time": ledger.line()}
        report.write(
            self.out,
            rows=rows,
            real=reached,
            premise=premises,
            held_out=scores,
            facts=facts,
            images=images,
        )
        return "\n".join([*report.summary(rows, reached), "", f"time: {ledger.line()}"])

    @property
    def first(self) -> compare.Runs:
        """Return the runs of the first training seed, whose pictures are shown."""
        return self.runs[0]

    def _premise(self, loaded: generator.Generator) -> list[premise.Premise]:
        images, condition = self._judged(1024, loaded)
        grids = inpaint.grids(loaded, images)
        return premise.measure(loaded.model, loaded.params, grids, condition)

    def _held_out(self) -> dict[str, contexts.Score]:
        """Draws of both heads in the same contexts of images that nothing was trained on."""
        pair = {"own head": self.first.own, "Drift-AR": self.first.drift}
        images, labels = self.images[self.num_training :], self.labels[self.num_training :]
        if not len(images) or not all(contexts.possible(loaded) for loaded in pair.values()):
            return {}
        chosen = np.random.default_rng(0).permutation(len(images))[:HELD_OUT]
        scores = {}
        for name, loaded in pair.items():
            spec = loaded.model.images
            grids = inpaint.grids(loaded, images[chosen])
            cases = contexts.of_generation(
                grids, labels[chosen], spec.patch_size, per_image=min(2, spec.num_tokens)
            )
            scores[name] = contexts.score(loaded, cases, DRAWS)
        return scores

    def _judged(self, most: int, loaded: generator.Generator) -> tuple[np.ndarray, Any]:
        """Return real images, and what a checkpoint is told of them."""
        return judges.some_real(loaded, self.images, self.labels, self.captions, most)

    def _facts(self, real_accuracy: float) -> dict:
        own, drift = self.first.own, self.first.drift
        return {
            "command": program.command("evaluate"),
            "data": f"{drift.config.data.name}, {len(self.images)} real images",
            "feature network": (
                f"{self.network.name} ({self.network_dir}, {self.network.width} features)"
            ),
            "classifier": (
                f"trained on the same set, {real_accuracy:.3f} of the real images right"
            ),
            "reference": "the real images" if self.reference is None else "the file given",
            "images": f"{self.num} per method and seed, {self.seeds} sampling seeds on each of "
            f"{len(self.runs)} training seeds",
            "mask law": f"own head {_law(own)}, Drift-AR {_law(drift)}",
            "steps": f"own head {own.step}, Drift-AR {drift.step}",
            "device": f"{drift.manifest['device']}, {drift.manifest['cpu_count']} CPU cores",
        }

    def _pictures(self, premises) -> list[tuple[str, str]]:
        own, drift = self.first.own, self.first.drift
        labels = np.arange(SHOWN) % drift.model.images.num_classes
        for name, loaded in (("own", own), ("drift", drift)):
            images = loaded.sample(labels, seed=0, batch_size=SHOWN).images
            path, names = self.out / f"samples_{name}.png", loaded.model.images.class_names
            pictures.save_by_class(path, images, labels, names)
        pictures.save_grid(self.out / "real.png", self._judged(SHOWN, drift)[0], columns=8)
        curves = {name: _records(workdir) for name, workdir in self.workdirs.items()}
        pictures.save_curves(
            self.out / "curves_own.png", {"own head": curves["own"]}, ["loss", "grad_norm"]
        )
        pictures.save_curves(
            self.out / "curves_drift.png",
            {"Drift-AR": curves["drift"]},
            [n for n in _CURVES if any(n in record for record in curves["drift"])] or ["loss"],
        )
        report.entropy_against_residual(self.out / "residual.png", premises)
        self._entropy_map()
        return [
            ("samples_own.png", f"Own head, {own.config.sample.nfe} NFE per AR step"),
            ("samples_drift.png", "Drift-AR, 1 NFE per AR step"),
            ("real.png", "Real images"),
            ("curves_own.png", "Training of the own head"),
            ("curves_drift.png", "Training of Drift-AR (the loss is no measure of progress)"),
            ("entropy.png", "Images, what was known of them, and the entropy of every position"),
            ("residual.png", "Entropy against residual, before and after Drift-AR training"),
        ]

    def _entropy_map(self) -> None:
        drift = self.first.drift
        images, condition = self._judged(MAPPED, drift)
        order = np.argsort(np.random.default_rng(1).random((MAPPED, drift.model.images.num_tokens)))
        # Half of the tokens, in random order: what masked generation meets on its way. Tokens in
        # turn are all known to those behind them, and a whole grid knows none.
        half = drift.model.images.num_tokens // 2
        known = order < (half if premise.sees_tokens(drift.model) else 0)
        known |= premise.reads_in_turn(drift.model)
        grids = inpaint.grids(drift, images)
        entropy = premise.entropies(drift.model, drift.params, grids, condition, known)
        shape = (MAPPED, *drift.model.images.grid)
        report.entropy_map(
            self.out / "entropy.png", images, known.reshape(shape), entropy.reshape(shape)
        )


@dataclasses.dataclass(frozen=True)
class Request:
    """What a user asks of an evaluation, as the flags of `evaluate` say it.

    Attributes:
      drifts, baselines: workdirs of tasks drift and host, one pair for each training seed; a
        baseline may be a converted checkpoint.
      judge: workdir of task classifier.
      out: folder of the report.
      num: images per method and seed.
      seeds: sampling seeds per pair.
      batch_sizes: of the speed table, in digits.
      overwrite: whether a report that is there may go.
      inception_dir: folder of InceptionV3, whose features measure instead.
      reference: file of moments that samples are compared with instead.
      metrics: of `quality.OPTIONAL`.
      controls: whether the controls of the own head are measured too.
      rivals: whether caches and orders of others are.
      drafters: workdirs of models that draft for the baselines in a row of rivals, one for each;
        (): no such row.
      guidance: further scales, in digits.
      lookahead: tokens that both heads look ahead in further rows; 0: no such rows.
      delta: how far a guess may move there; None: the default.
      ar_steps: further numbers of AR steps, in digits.
      vae: folder of the autoencoder of converted baselines; None: there are none.
    """

    drifts: Sequence[str]
    baselines: Sequence[str]
    judge: str
    out: str
    num: int
    seeds: int
    batch_sizes: Sequence[str]
    overwrite: bool
    inception_dir: str | None = None
    reference: str | None = None
    metrics: Sequence[str] = quality.OPTIONAL
    controls: bool = False
    rivals: bool = False
    drafters: Sequence[str] = ()
    guidance: Sequence[str] = ()
    lookahead: int = 0
    delta: float | None = None
    ar_steps: Sequence[str] = ()
    vae: str | None = None

    def check(self) -> None:
        """Raise ValueError (field, value, allowed) where flags alone show a mistake."""
        if (pathlib.Path(self.out) / "report.json").exists() and not self.overwrite:
            raise config.wrong("out", self.out, "a folder without a report, or --overwrite")
        pairs, owns = len(self.drifts), len(self.baselines)
        if pairs != owns:
            raise config.wrong("baseline", owns, f"as many runs as --workdir, {pairs}")
        if self.drafters and not self.rivals:
            raise config.wrong("draft_workdir", ",".join(self.drafters), "none without --rivals")
        if self.drafters and len(self.drafters) != pairs:
            allowed = f"as many runs as --workdir, {pairs}"
            raise config.wrong("draft_workdir", len(self.drafters), allowed)
        if self.seeds < 1:
            raise config.wrong("seeds", self.seeds, "a whole number of at least 1")
        sizes = self.batch_sizes
        if not sizes or not all(b.isdecimal() and int(b) > 0 for b in sizes):
            raise config.wrong("batch_sizes", ",".join(sizes), "whole numbers of at least 1")
        for word in self.ar_steps:
            if not word.isdecimal() or not int(word):
                raise config.wrong("ar_steps", word, "whole numbers of at least 1")
        for metric in self.metrics:
            if metric not in quality.OPTIONAL:
                raise config.wrong("metrics", metric, " | ".join(quality.OPTIONAL))
        if self.lookahead < 0:
            raise config.wrong("lookahead", self.lookahead, "a whole number from 0")


def open_session(request: Request) -> Session:
    """Read checkpoints and data; raises ValueError, one line, before anything is compiled."""
    request.check()
    folder, inception_dir = pathlib.Path(request.out), request.inception_dir
    scales = tuple(_scale(word) for word in request.guidance)
    extras = compare.Extras(
        request.controls,
        scales,
        request.lookahead,
        request.delta,
        tuple(int(word) for word in request.ar_steps),
        request.rivals,
    )
    opened = judges.open_judge(request.judge)
    judges.check_num(request.num, inception.WIDTH if inception_dir else opened.network.width)
    network = judges.open_inception(inception_dir) if inception_dir else opened.network
    reference = request.reference
    moved = frechet.read(reference, network.name, network.width) if reference else None
    drifts = [judges.open_subject(path, "drift", "workdir") for path in request.drifts]
    baselines = [
        judges.open_baseline(path, drift, request.vae)
        for path, drift in zip(request.baselines, drifts, strict=True)
    ]
    opened.check((*drifts, *baselines))
    drafted = [
        own.with_drafter(judges.open_subject(path, "host", "draft_workdir"))
        for own, path in zip(baselines, request.drafters, strict=bool(request.drafters))
    ]
    drafted = drafted or [None] * len(drifts)
    runs = list(map(compare.Runs, baselines, drifts, drafted))
    for method in compare.methods(runs[0], extras):
        runs[0].of(method).check(method.settings)
    sources = opened.open_sources()
    # The floor is a distance of two halves, and each must give a covariance of full rank.
    if (there := sum(map(len, sources))) // 2 <= network.width:
        allowed = f"a set of more than {2 * network.width + 1} images for its features, not {there}"
        field = "inception" if inception_dir else "judge"
        raise config.wrong(field, inception_dir or request.judge, allowed)
    images, labels = judges.all_images(sources)
    captions = None
    # Sets without captions would refuse to be asked for them.
    if any(loaded.reader.takes != "classes" for loaded in (*drifts, *baselines)):
        captions = judges.all_captions(sources)
    folder.mkdir(parents=True, exist_ok=True)
    return Session(
        runs=runs,
        classifier=opened.network,
        network=network,
        network_dir=inception_dir or request.judge,
        reference=moved,
        metrics=tuple(request.metrics),
        workdirs={"own": request.baselines[0], "drift": request.drifts[0]},
        images=images,
        labels=labels,
        captions=captions,
        num_training=len(sources[0]),
        out=folder,
        num=request.num,
        seeds=request.seeds,
        batch_sizes=tuple(int(b) for b in request.batch_sizes),
        extras=extras,
    )


def _law(loaded: generator.Generator) -> str:
    """Mask law of the training; hosts without masks have none."""
    return loaded.config.get("mask", {}).get("law", "none")


def _scale(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise config.wrong("guidance", word, "numbers from 0") from None


def _records(workdir: str) -> list[dict]:
    """The training log; empty for a converted checkpoint, which has none."""
    path = pathlib.Path(workdir) / "metrics.jsonl"
    return journal.read_metrics(path) if path.exists() else []
