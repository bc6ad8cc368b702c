"""Runs a sweep: trains each arm as `train` does, measures it as `evaluate` does, once per seed.

Layout of the folder of a sweep:

  results/ARM.seedK.json   one finished measurement
  runs/ARM_seedK           a run; gone once it is measured, unless other arms stand on it
"""

import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from driftar_jax import config
from driftar_jax.cli import program
from driftar_jax.evaluation import ahead, compare, judges, premise, quality, speed
from driftar_jax.sampling import batches, contexts, generator, load
from driftar_jax.sampling.settings import Settings
from driftar_jax.storage.checkpoints import read_config
from driftar_jax.storage.jsons import read_json, write_json
from driftar_jax.sweeps.arms import Arm, Sweep, command, settings
from driftar_jax.training import journal, locks, loop, runs

METRICS = ("precision_recall",)
BATCH = 128
# Images of the premise, contexts and draws of the energy score, images of the acceptance.
PREMISE, CONTEXTS, DRAWS, DRAFTED = 512, 512, 8, 256
# Images that look ahead, and those whose tokens are moved.
AHEAD, MOVED = 128, 16
# What a training log says of the prior; the last value stands.
LOGGED = ("energy_score", "sigma_mean", "entropy_mean", "entropy_square")

# In a workdir: the seconds of its training.
SPENT = "seconds.json"


class Ablation:
    """One sweep in one folder; use it in a `with`.

    Args:
      sweep: what is asked for.
      out: folder, made or gone on with.
      say: takes a line for each arm.
      stop: asked after every step; what it returns says why to stop, "" to go on.

    Raises:
      ValueError: the folder belongs to another sweep, or another process works in it.
    """

    def __init__(
        self,
        sweep: Sweep,
        out: str | os.PathLike,
        *,
        say: Callable[[str], None] = print,
        stop: Callable[[], str] = lambda: "",
    ):
        self.sweep, self.out = sweep, pathlib.Path(out)
        self._say, self._stop = say, stop
        (self.out / "results").mkdir(parents=True, exist_ok=True)
        self._lock = locks.WorkdirLock(self.out)
        self._real: quality.RealSet | None = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._lock.release()

    def run(self, seeds: Sequence[int], only: Sequence[str] = ()) -> bool:
        """Run every arm of every seed that has no result yet; False where it was stopped.

        Args:
          seeds: of the sweep's.
          only: names of arms; what they stand on is trained as well. Empty: all.
        """
        arms = [a for a in self.sweep.arms.values() if not a.once and (not only or a.name in only)]
        for seed in seeds:
            for arm in arms:
                self._check_result(arm, seed)
        for seed in seeds:
            missing = [arm for arm in arms if not self._result_path(arm, seed).exists()]
            if missing and not self._trained(self.sweep.judge, 0):
                return False
            for arm in missing:
                if not self._measure(arm, seed):
                    return False
            self._tidy(seed)
        return True

    # --- results -------------------------------------------------------------------------------

    def _result_path(self, arm: Arm, seed: int) -> pathlib.Path:
        return self.out / "results" / f"{arm.slug}.seed{seed}.json"

    def _check_result(self, arm: Arm, seed: int) -> None:
        path = self._result_path(arm, seed)
        if not path.exists():
            return
        then, now = read_json("results", path, "a result of ablate").get("asked"), self._asked(arm)
        if not isinstance(then, dict):
            raise config.wrong("results", str(path), "a result of ablate, or no such file")
        for name in sorted(then.keys() | now.keys()):
            if then.get(name) != now.get(name):
                allowed = f"{then.get(name)!r} as in {path}; use a new folder, or remove that file"
                raise config.wrong(f"arm {arm.name}, {name}", now.get(name), allowed)

    def _asked(self, arm: Arm) -> dict[str, Any]:
        """All that decides a result but the seed, as plain data."""
        facts = {
            "config": arm.config,
            "set": list(arm.set),
            "needs": arm.needs,
            "measured": {field: list(of) for field, of in arm.measured.items()},
            "of": arm.of,
            "sample": arm.sample,
            "drafts": arm.drafts,
            "timed": arm.timed,
            "images": self.sweep.images,
        }
        # Where it is asked for alone: folders of sweeps from before it go on.
        facts |= {"lookahead": arm.lookahead} if arm.lookahead else {}
        # Through JSON, so that it compares equal to what a result's file holds.
        return json.loads(json.dumps(facts))

    # --- training ------------------------------------------------------------------------------

    def _workdir(self, arm: Arm, seed: int) -> pathlib.Path:
        name = arm.slug if arm.once else f"{arm.slug}_seed{seed}"
        return self.out / "runs" / name

    def _arm(self, name: str) -> Arm:
        return self.sweep.arms[name]

    def _settings(self, arm: Arm, seed: int):
        workdirs = {n: str(self._workdir(self._arm(n), seed)) for n in arm.needs.values()}
        numbers = {
            field: last(self._workdir(self._arm(name), seed))[metric]
            for field, (name, metric) in arm.measured.items()
        }
        return settings(arm, seed=seed, workdirs=workdirs, numbers=numbers)

    def _trained(self, arm: Arm, seed: int) -> bool:
        """Make sure that the arm's run is done; False where it was stopped."""
        for name in arm.stands_on:
            if not self._trained(self._arm(name), seed):
                return False
        if arm.of:
            return True
        recipe, workdir = self._settings(arm, seed), self._workdir(arm, seed)
        if finished(workdir, recipe):
            return True
        began = time.monotonic()
        with runs.open_run(recipe, str(workdir)) as run:
            # Nobody watches: a damaged checkpoint is set aside, and the run goes on from the one
            # before.
            state = run.start(fall_back=True)
            self._say(f"{arm.name}, seed {seed}: step {int(state.step)} of {recipe.train.steps}")
            # Not `go_on`: its pictures would cost as much as the training.
            state = run.loop.run(state, run.batches, say=lambda line: None, stop=self._stop)
            done = int(state.step) == recipe.train.steps
            write_json(workdir / SPENT, spent(workdir) + time.monotonic() - began)
        del state, run
        jax.clear_caches()  # the programs of every arm would stay in memory
        return done

    # --- measuring -----------------------------------------------------------------------------

    def _measure(self, arm: Arm, seed: int) -> bool:
        trained = self._arm(arm.of) if arm.of else arm
        record = {
            "arm": arm.name,
            "question": arm.question,
            "against": "" if arm.name == self.sweep.against(arm) else self.sweep.against(arm),
            "order": list(self.sweep.arms).index(arm.name),
            "seed": seed,
            "asked": self._asked(arm),
            "sweep": program.command("ablate"),
            "machine": runs.environment() | {"load": round(os.getloadavg()[0], 1)},
        }
        try:
            against = self._arm(self.sweep.against(arm))
            # Timed by turns with the arm it is held against, which therefore has to be there.
            first = against if arm.timed else trained
            if not (self._trained(first, seed) and self._trained(trained, seed)):
                return False
        # A training that breaks down is a result too: the arm is not tried again, and its row says
        # so.
        except loop.NonFiniteLoss as error:
            self._say(f"{arm.name}, seed {seed}: {error}")
            write_json(self._result_path(arm, seed), record | {"failed": str(error), "figures": {}})
            return True
        workdir = self._workdir(trained, seed)
        recipe = self._settings(trained, seed)
        start = time.monotonic()
        figures = self._figures(arm, seed, workdir)
        record |= {
            "command": command(trained, recipe, str(workdir)),
            "cost": {
                "steps": recipe.train.steps,
                "train_s": round(spent(workdir), 1),
                "measure_s": round(time.monotonic() - start, 1),
            },
            "figures": figures,
            "network": self._real.network.name,
            "floor": self._floor,
        }
        write_json(self._result_path(arm, seed), record)
        self._say(line(record))
        jax.clear_caches()
        return True

    def _figures(self, arm: Arm, seed: int, workdir: pathlib.Path) -> dict[str, Any]:
        real, loaded = self._judge(), load.load(workdir)
        sampling = loaded.checked(**arm.sample)
        labels = np.random.default_rng(seed).choice(real.labels, self.sweep.images)
        result = compare.judge(loaded, sampling, real, labels, seed, BATCH)
        figures = {k: v for k, v in vars(result).items() if v is not None}
        figures |= {k: v for k, v in last(workdir).items() if k in LOGGED}
        figures["head_evaluations"] = sum(sampling.head_steps)
        if not arm.of and contexts.possible(loaded):
            score = contexts.score(loaded, self._held_out(loaded), DRAWS)
            figures["held_out_energy_score"] = score.energy_score
            figures["spread_to_error"] = list(score.spread_to_error)
        if not arm.of and premise.measurable(loaded.model):
            premises = premise.measure(loaded.model, loaded.params, *self._told(loaded))
            figures["spearman"] = [
                {"num_unknown": p.num_unknown, "spearman": p.correlation} for p in premises
            ]
        drafted = loaded.checked(**arm.drafts) if arm.drafts else sampling
        if drafted.drafts:
            figures["drafts"] = self._acceptance(loaded, drafted, labels[:DRAFTED], seed)
        if arm.lookahead:
            figures |= self._ahead(loaded, arm.lookahead, labels[:AHEAD], seed)
        if arm.timed:
            figures["speed"] = self._speed(arm, loaded, sampling, seed)
        return figures

    def _judge(self) -> quality.RealSet:
        if self._real is None:
            workdir = str(self._workdir(self.sweep.judge, 0))
            self._real = judges.open_real(workdir, self.sweep.images, METRICS)
            self._floor = self._real.floor()
        return self._real

    def _held_out(self, loaded: generator.Generator) -> contexts.Contexts:
        """The same contexts for every arm, of images that nothing was trained on."""
        real = self._real
        images, labels = real.images[real.num_training :], real.labels[real.num_training :]
        chosen = np.random.default_rng(0).permutation(len(images))[:CONTEXTS]
        patch = loaded.model.images.patch_size
        few = min(4, loaded.model.images.num_tokens)
        return contexts.of_generation(images[chosen], labels[chosen], patch, per_image=few)

    def _told(self, loaded: generator.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return real images, and what a checkpoint is told of them."""
        captions = None
        if loaded.reader.takes != "classes":
            workdir = str(self._workdir(self.sweep.judge, 0))
            captions = judges.all_captions(judges.open_judge(workdir).open_sources())
        images, labels = self._real.images, self._real.labels
        return judges.some_real(loaded, images, labels, captions, PREMISE)

    def _acceptance(self, loaded, sampling: Settings, labels, seed: int) -> dict[str, Any]:
        arguments = loaded.model, sampling, loaded.params, loaded.conditions(labels, seed), seed
        _, speculation = batches.sample_drafted(
            *arguments, batch_size=BATCH, to_pixels=loaded.to_pixels
        )
        counts = vars(batches.drafted_counts(speculation))
        return {
            "rule": sampling.rule,
            "gamma": sampling.gamma,
            **counts,
            **batches.summary(speculation),
        }

    def _ahead(self, loaded, window: int, labels, seed: int) -> dict[str, Any]:
        """Calls and deviation of looking ahead, and how far moved tokens move the next ones."""
        condition = loaded.conditions(labels, seed)
        records = ahead.against_plain(loaded, window, condition, seed, BATCH)
        figures = {f"ahead_{name}": record for name, record in records.items()}
        few, settings = loaded.conditions(labels[:MOVED], seed), loaded.settings(gamma=0)
        if settings.method != "own":  # an own head of many steps has no one map to look at
            moves = ahead.contraction(loaded, settings, few, seed)
            figures["contraction"] = {f"{m['move']:g}": m["factor"] for m in moves}
        return figures

    def _speed(self, arm: Arm, loaded, sampling: Settings, seed: int) -> dict[str, Any]:
        """Images per second by turns with the arm it is held against."""
        other = load.load(self._workdir(self._arm(self.sweep.against(arm)), seed))
        labels = np.resize(self._real.labels, BATCH)
        calls = [
            lambda of=of, s=s: compare.sample(of, s, labels, 0, BATCH)
            for of, s in ((other, other.settings()), (loaded, sampling))
        ]
        timing = speed.alternate(calls, BATCH)[1]
        return {
            "batch_size": BATCH,
            "images_per_s": timing.median,
            "images_per_s_low": timing.low,
            "images_per_s_high": timing.high,
            "ratio": timing.ratio,
            "ratio_low": min(timing.ratios),
            "ratio_high": max(timing.ratios),
        }

    def _tidy(self, seed: int) -> None:
        """Remove the runs of a seed that nothing stands on: all of it is in the results."""
        for arm in self.sweep.arms.values():
            done = arm.config and not arm.once and self._result_path(arm, seed).exists()
            if done and not self._needed(arm):
                shutil.rmtree(self._workdir(arm, seed), ignore_errors=True)

    def _needed(self, arm: Arm) -> bool:
        return any(
            arm.name in (*other.stands_on, self.sweep.against(other))
            for other in self.sweep.arms.values()
        )


def finished(workdir: pathlib.Path, resolved: Any) -> bool:
    """Say whether the run of a config is trained to its end.

    Raises:
      ValueError: the workdir belongs to another config.
    """
    if not (workdir / "config.json").exists():
        return False
    config.check_same_run(resolved, read_config(workdir))
    return (workdir / "checkpoints" / str(resolved.train.steps)).is_dir()


def spent(workdir: pathlib.Path) -> float:
    """Return the seconds that training has taken, over all sittings that were not killed."""
    path = workdir / SPENT
    if not path.exists():
        return 0.0
    try:
        return float(json.loads(path.read_bytes()))
    except (ValueError, TypeError, RecursionError):
        allowed = "the seconds that ablate wrote (without the file they count from 0)"
        raise config.wrong("out", str(path), allowed) from None


def last(workdir: pathlib.Path) -> dict[str, float]:
    """Read the last value of everything in a training log."""
    return {k: v for r in journal.read_metrics(workdir / "metrics.jsonl") for k, v in r.items()}


def line(record: dict[str, Any]) -> str:
    """Write one result for a reader."""
    figures, cost = record["figures"], record["cost"]
    words = [f"{record['arm']}, seed {record['seed']}: distance {figures['frechet']:.2f}"]
    if "held_out_energy_score" in figures:
        words.append(f"energy score {figures['held_out_energy_score']:.4f}")
    if "drafts" in figures:
        words.append(f"{figures['drafts']['accepted_groups']:.0%} of the drafts accepted")
    if "ahead_bounded" in figures:
        words.append(f"{figures['ahead_bounded']['tokens_per_call']:.2f} tokens per call")
    if "speed" in figures:
        words.append(f"{figures['speed']['images_per_s']:.0f} images/s")
    words.append(f"trained in {cost['train_s']:.0f} s, measured in {cost['measure_s']:.0f} s")
    return ", ".join(words)
