"""One evaluation: checks what it is given, measures, writes the report."""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from driftar_jax import config
from driftar_jax.data import pictures
from driftar_jax.evaluation import compare, frechet, judges, networks, premise, quality
from driftar_jax.evaluation.stopwatch import Ledger
from driftar_jax.features import inception
from driftar_jax.reports import report
from driftar_jax.sampling import generator, load
from driftar_jax.training import journal

SHOWN = 64
# What a Drift-AR run may log and a reader wants to see.
_CURVES = ("loss", "energy_score", "mu", "draft_reg", "spread", "strength_0.2")
MAPPED = 8


@dataclasses.dataclass(frozen=True)
class Session:
    """Everything an evaluation needs, checked."""

    drifts: Sequence[generator.Generator]
    baselines: Sequence[generator.Generator]
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
    asked: compare.Asked

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
        frechet.write(self.out / "reference.npz", real.moments, self.network.name)
        rows = compare.measure(
            self.baselines,
            self.drifts,
            real,
            num=self.num,
            sampling_seeds=self.seeds,
            batch_sizes=self.batch_sizes,
            asked=self.asked,
        )
        reached = report.RealRow(
            network=self.network.name,
            floor=real.floor(),
            quality=quality.summary([real.quality(self.num, seed) for seed in range(self.seeds)]),
        )
        with ledger("premise and pictures"):
            found = {
                name: premise.measure(loaded.model, loaded.params, *self._judged(1024, loaded))
                for name, loaded in (
                    ("own head alone", self.baselines[0]),
                    ("Drift-AR", self.drifts[0]),
                )
                if premise.measurable(loaded.model)
            }
            shown = self._pictures(found)
        facts = self._facts(real.accuracy) | {"time": ledger.line()}
        report.write(self.out, rows=rows, real=reached, premise=found, facts=facts, images=shown)
        return "\n".join([*report.summary(rows, reached), "", f"time: {ledger.line()}"])

    def _judged(self, most: int, loaded: generator.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Real images, and what a checkpoint is told of them: their class or their caption."""
        chosen = np.random.default_rng(0).permutation(len(self.images))[:most]
        labels = self.labels[chosen]
        captions = None if self.captions is None else [self.captions[i] for i in chosen]
        return self.images[chosen], loaded.reader.of_real(labels, captions)

    def _facts(self, real_accuracy: float) -> dict:
        drift = self.drifts[0]
        return {
            "command": "python -m driftar_jax.evaluate " + " ".join(sys.argv[1:]),
            "data": f"{drift.config.data.name}, {len(self.images)} real images",
            "feature network": (
                f"{self.network.name} ({self.network_dir}, {self.network.width} features)"
            ),
            "classifier": (
                f"trained on the same set, {real_accuracy:.3f} of the real images right"
            ),
            "reference": "the real images" if self.reference is None else "the file given",
            "images": f"{self.num} per method and seed, {self.seeds} sampling seeds on each of "
            f"{len(self.drifts)} training seeds",
            "mask law": f"own head {_law(self.baselines[0])}, Drift-AR {_law(drift)}",
            "steps": f"own head {self.baselines[0].step}, Drift-AR {drift.step}",
            "device": f"{drift.manifest['device']}, {drift.manifest['cpu_count']} CPU cores",
        }

    def _pictures(self, found) -> list[tuple[str, str]]:
        labels = np.arange(SHOWN) % self.drifts[0].model.images.num_classes
        for name, loaded in (("own", self.baselines[0]), ("drift", self.drifts[0])):
            made = loaded.sample(labels, seed=0, batch_size=SHOWN).images
            pictures.save_grid(self.out / f"samples_{name}.png", made, columns=8)
        pictures.save_grid(self.out / "real.png", self._judged(SHOWN, self.drifts[0])[0], columns=8)
        curves = {name: _records(workdir) for name, workdir in self.workdirs.items()}
        pictures.save_curves(
            self.out / "curves_own.png", {"own head": curves["own"]}, ["loss", "grad_norm"]
        )
        pictures.save_curves(
            self.out / "curves_drift.png",
            {"Drift-AR": curves["drift"]},
            [n for n in _CURVES if any(n in record for record in curves["drift"])] or ["loss"],
        )
        report.entropy_against_residual(self.out / "residual.png", found)
        self._entropy_map()
        return [
            ("samples_own.png", f"Own head, {self.baselines[0].config.sample.nfe} NFE per AR step"),
            ("samples_drift.png", "Drift-AR, 1 NFE per AR step"),
            ("real.png", "Real images"),
            ("curves_own.png", "Training of the own head"),
            ("curves_drift.png", "Training of Drift-AR (the loss is no measure of progress)"),
            ("entropy.png", "Images, what was known of them, and the entropy of every position"),
            ("residual.png", "Entropy against residual, before and after Drift-AR training"),
        ]

    def _entropy_map(self) -> None:
        drift = self.drifts[0]
        images, labels = self._judged(MAPPED, drift)
        order = np.argsort(np.random.default_rng(1).random((MAPPED, drift.model.images.num_tokens)))
        half = drift.model.images.num_tokens // 2
        known = order < (half if premise.sees_tokens(drift.model) else 0)
        known |= premise.reads_in_turn(drift.model)
        entropy = premise.entropies(drift.model, drift.params, images, labels, known)
        shape = (MAPPED, *drift.model.images.grid)
        report.entropy_map(
            self.out / "entropy.png", images, known.reshape(shape), entropy.reshape(shape)
        )


def open_session(
    *,
    drifts: Sequence[str],
    baselines: Sequence[str],
    judge: str,
    out: str,
    num: int,
    seeds: int,
    batch_sizes: Sequence[str],
    overwrite: bool,
    inception_dir: str | None = None,
    reference: str | None = None,
    metrics: Sequence[str] = quality.OPTIONAL,
    controls: bool = False,
    guidance: Sequence[str] = (),
) -> Session:
    """Read checkpoints and data; raises ValueError, one line, before anything is compiled."""
    folder, network_dir = pathlib.Path(out), inception_dir or judge
    if (folder / "report.json").exists() and not overwrite:
        raise config.wrong("out", out, "a folder without a report, or --overwrite")
    if len(drifts) != len(baselines):
        raise config.wrong("baseline", len(baselines), f"as many runs as --workdir, {len(drifts)}")
    if seeds < 1:
        raise config.wrong("seeds", seeds, "a whole number of at least 1")
    if not batch_sizes or not all(b.isdigit() and int(b) > 0 for b in batch_sizes):
        raise config.wrong("batch_sizes", ",".join(batch_sizes), "whole numbers of at least 1")
    for metric in metrics:
        if metric not in quality.OPTIONAL:
            raise config.wrong("metrics", metric, " | ".join(quality.OPTIONAL))
    asked = compare.Asked(controls, tuple(_scale(word) for word in guidance))
    opened = judges.open_judge(judge)
    judges.check_num(num, inception.WIDTH if inception_dir else opened.network.width)
    network = judges.open_inception(inception_dir) if inception_dir else opened.network
    moved = frechet.read(reference, network.name, network.width) if reference else None
    loaded_drifts = [_load(path, "drift", "workdir") for path in drifts]
    loaded_baselines = [_load(path, "host", "baseline") for path in baselines]
    opened.check((*loaded_drifts, *loaded_baselines))
    for method in compare.methods(loaded_baselines[0], loaded_drifts[0], asked):
        loaded = loaded_baselines[0] if method.baseline else loaded_drifts[0]
        loaded.check(method.settings)
    sources = opened.open_sources()
    if (there := sum(map(len, sources))) // 2 <= network.width:
        allowed = f"a set of more than {2 * network.width + 1} images for its features, not {there}"
        raise config.wrong("inception" if inception_dir else "judge", network_dir, allowed)
    images, labels = judges.all_images(sources)
    captions = None
    if any(loaded.reader.takes != "classes" for loaded in (*loaded_drifts, *loaded_baselines)):
        captions = judges.all_captions(sources)
    folder.mkdir(parents=True, exist_ok=True)
    return Session(
        drifts=loaded_drifts,
        baselines=loaded_baselines,
        classifier=opened.network,
        network=network,
        network_dir=network_dir,
        reference=moved,
        metrics=tuple(metrics),
        workdirs={"own": baselines[0], "drift": drifts[0]},
        images=images,
        labels=labels,
        captions=captions,
        num_training=len(sources[0]),
        out=folder,
        num=num,
        seeds=seeds,
        batch_sizes=tuple(int(b) for b in batch_sizes),
        asked=asked,
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


def _load(path: str, task: str, flag: str) -> generator.Generator:
    loaded = load.load(path)
    if loaded.config.task != task:
        raise config.wrong(flag, path, f"a run of task {task}, not {loaded.config.task}")
    return loaded
