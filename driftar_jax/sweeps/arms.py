"""What a sweep file asks for: arms, each a config with changes, and what an arm stands on.

A file is a Python program with `get_sweep(size) -> dict`; the words of the dictionary are the
fields of `Sweep` and `Arm`, in data alone.
"""

import dataclasses
import re
import shlex
from typing import Any

import ml_collections

from driftar_jax import config
from driftar_jax.cli import files
from driftar_jax.config import wrong


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to train or to sample, measured once per seed.

    Attributes:
      name: heading of its row; its folders and files are called after it.
      question: what it is an answer to; arms of one question stand in one table. "" for the
        reference, and for what is trained for others alone.
      config: `FILE.py[:SIZE]`; "" where the run of `of` is sampled.
      set: changes as on the command line of `train`, `field=value`.
      needs: fields that hold the workdir of another arm, of the same seed.
      measured: fields that hold a number of another arm's training log: `(arm, metric)`, its last.
      of: the arm whose run is sampled, where this one trains nothing.
      sample: changes of the sampling settings.
      drafts: settings of speculative decoding whose acceptance is measured beside the rest.
      lookahead: tokens made in one call, for an arm whose calls, deviation and contraction are
        measured; 0: none are.
      timed: whether seconds per image are measured, by turns with the arm it is held against.
      once: one run, of seed 0, serves all seeds; it is not measured.
      against: the arm it is held against; "": the sweep's reference.
    """

    name: str
    question: str = ""
    config: str = ""
    set: tuple[str, ...] = ()
    needs: dict[str, str] = dataclasses.field(default_factory=dict)
    measured: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    of: str = ""
    sample: dict[str, Any] = dataclasses.field(default_factory=dict)
    drafts: dict[str, Any] = dataclasses.field(default_factory=dict)
    lookahead: int = 0
    timed: bool = False
    once: bool = False
    against: str = ""

    @property
    def slug(self) -> str:
        """Return the name as part of a path."""
        return re.sub(r"[^a-z0-9]+", "_", self.name.lower()).strip("_")

    @property
    def stands_on(self) -> tuple[str, ...]:
        """List the arms that have to be trained before this one."""
        on = (*self.needs.values(), *(arm for arm, _ in self.measured.values()))
        return tuple(dict.fromkeys((*on, *((self.of,) if self.of else ()))))


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A checked sweep.

    Attributes:
      source: `FILE.py[:SIZE]` it is from.
      arms: in an order in which each comes after what it stands on.
      judge: the classifier whose features measure, trained once.
      reference: name of the arm that the others are held against.
      seeds: training seeds; an arm is sampled with the same number.
      images: samples per arm and seed.
    """

    source: str
    arms: dict[str, Arm]
    judge: Arm
    reference: str
    seeds: tuple[int, ...]
    images: int

    def against(self, arm: Arm) -> str:
        """Return the name of the arm that `arm` is held against."""
        return arm.against or self.reference


def read(source: str) -> Sweep:
    """Read the sweep of a file.

    Raises:
      ValueError: there is no such sweep, or a part of it cannot be; one line.
    """
    parts = files.result(source, "get_sweep", "sweep")
    try:
        arms = {name: Arm(name, **fields) for name, fields in parts.pop("arms").items()}
        judge = Arm("judge", once=True, **parts.pop("judge"))
        sweep = Sweep(source=source, arms=_ordered(arms), judge=judge, **parts)
    except (TypeError, KeyError, AttributeError) as error:
        raise wrong("sweep", source, f"the fields of Sweep and Arm ({error})") from error
    _check(sweep)
    return sweep


def _ordered(arms: dict[str, Arm]) -> dict[str, Arm]:
    """The arms in their order, each after those it stands on."""
    # A dictionary keeps the order in which its keys came, and that is the result.
    placed: dict[str, Arm] = {}

    def place(name: str, below: tuple[str, ...]) -> None:
        if name in placed:
            return
        if name not in arms:
            raise wrong("arms", name, f"{' | '.join(arms)} (wanted by {below[-1]})")
        if name in below:
            raise wrong("arms", name, "arms that do not stand on themselves")
        for other in arms[name].stands_on:
            place(other, (*below, name))
        placed[name] = arms[name]

    for name in arms:
        place(name, ())
    return placed


def _check(sweep: Sweep) -> None:
    if sweep.reference not in sweep.arms:
        raise wrong("reference", sweep.reference, " | ".join(sweep.arms))
    if not sweep.seeds or len(set(sweep.seeds)) != len(sweep.seeds):
        raise wrong("seeds", sweep.seeds, "at least one seed, each once")
    slugs = [arm.slug for arm in sweep.arms.values()]
    for arm in sweep.arms.values():
        if slugs.count(arm.slug) > 1 or not arm.slug or arm.slug == sweep.judge.slug:
            raise wrong("arms", arm.name, "names that differ in letters and digits, none judge")
        if "," in arm.name:
            raise wrong("arms", arm.name, "names without commas, which separate those of --only")
        if bool(arm.of) == bool(arm.config):
            raise wrong(f"arm {arm.name}", arm.of, "either a config, or the arm that it samples")
        if sweep.against(arm) not in sweep.arms:
            raise wrong("against", arm.against, " | ".join(sweep.arms))
        if arm.of and sweep.arms[arm.of].of:
            raise wrong("of", arm.of, "an arm that is trained")
    # A file that is changed under a running sweep is found by its results; mistakes are found now.
    for arm in (sweep.judge, *sweep.arms.values()):
        if arm.config:
            settings(arm, seed=sweep.seeds[0], workdirs=dict.fromkeys(arm.needs.values(), "-"))


def settings(
    arm: Arm, *, seed: int, workdirs: dict[str, str], numbers: dict[str, float] | None = None
) -> ml_collections.ConfigDict:
    """Return the checked config of an arm's run.

    Args:
      arm: one that trains.
      seed: of the run.
      workdirs: of the arms in `needs`, by name.
      numbers: of the fields in `measured`; None leaves the config's own.

    Raises:
      ValueError: the config cannot run.
    """
    run_config = files.load(arm.config)
    files.change(run_config, arm.set)
    run_config.seed = 0 if arm.once else seed
    for field, name in arm.needs.items():
        files.assign(run_config, field, workdirs[name])
    for field in arm.measured:
        if numbers is not None:
            files.assign(run_config, field, float(numbers[field]))
    config.check(run_config)
    return run_config


def command(arm: Arm, resolved: ml_collections.ConfigDict, workdir: str) -> str:
    """Return the `train` command of an arm's run, to be typed as it stands."""
    flat = config.flatten(resolved)
    words = [f"--config={arm.config}", f"--config.seed={resolved.seed}"]
    words += [f"--config.{word}" for word in arm.set]
    words += [f"--config.{field}={flat[field]}" for field in (*arm.needs, *arm.measured)]
    return shlex.join(["python", "-m", "driftar_jax.train", *words, f"--workdir={workdir}"])
