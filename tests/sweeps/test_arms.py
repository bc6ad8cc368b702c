"""Sweeps: what a file may ask for, in which order it runs, what its results say."""

import pytest

from driftar_jax.reports import ablation_table
from driftar_jax.sweeps import arms as sweep

FILE = "configs/sweeps/mar_small.py"


@pytest.fixture
def made(tmp_path):
    """`made(**changes)` reads a sweep file of two arms whose dictionary is changed."""

    def read(**changes):
        config = "configs/drift_mar_small.py:tiny"
        arms = {
            "late": {"config": config, "needs": {"init_from": "early"}, "set": ("drift.draws=3",)},
            "early": {"config": "configs/mar_small.py:tiny"},
        }
        judge = {"config": "configs/classifier.py:tiny"}
        asked = dict(arms=arms, judge=judge, reference="late", seeds=(0,), images=9)
        asked["arms"] = arms | changes.pop("arms", {})
        path = tmp_path / "sweep.py"
        path.write_text(f"def get_sweep(size='x'):\n    return {asked | changes!r}\n")
        return sweep.read(str(path))

    return read


@pytest.mark.parametrize(
    "source",
    [
        *(f"{FILE}:{size}" for size in ("digits8", "fashion28", "emoji32", "tiny")),
        "configs/sweeps/nextstep_small.py:emoji32",
        *(
            f"configs/sweeps/{file}.py:{size}"
            for file in ("backbone", "repulsion", "positives")
            for size in ("fashion28_4x4", "tiny")
        ),
        "configs/sweeps/transdiff_small.py:fashion28",
        "configs/sweeps/context_noise.py:emoji32",
    ],
)
def test_every_arm_of_the_repository_is_a_config_that_runs(source):
    found = sweep.read(source)
    names = list(found.arms)
    for arm in found.arms.values():
        assert all(names.index(other) < names.index(arm.name) for other in arm.stands_on)
    grids = {"drift.features_from": "features"}
    needs = grids if "transdiff" in source else {"init_from": "own"}
    needs = {} if "context_noise" in source else needs  # from the shipped backbone
    assert found.arms[found.reference].needs == needs


def test_an_arm_is_its_config_with_changes_and_a_command_that_makes_it(made):
    arm = made().arms["late"]
    settings = sweep.settings(arm, seed=4, workdirs={"early": "runs/e"})
    assert (settings.drift.draws, settings.seed, settings.init_from) == (3, 4, "runs/e")
    assert sweep.command(arm, settings, "runs/late") == (
        "python -m driftar_jax.train --config=configs/drift_mar_small.py:tiny --config.seed=4 "
        "--config.drift.draws=3 --config.init_from=runs/e --workdir=runs/late"
    )


def test_a_number_of_another_run_becomes_a_setting(made):
    arm = made().arms["late"]
    arm = sweep.dataclasses.replace(arm, measured={"prior.constant": ("early", "sigma_mean")})
    numbers = {"prior.constant": 0.3125}
    settings = sweep.settings(arm, seed=0, workdirs={"early": "-"}, numbers=numbers)
    assert settings.prior.constant == 0.3125


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (dict(seeds=()), "seeds: got"),
        (dict(reference="lat"), "reference: got 'lat'"),
        (dict(colour=1), "sweep: got"),
        (dict(arms={"x": {"config": "no.py"}}), "config: got 'no.py'"),
        (dict(arms={"x": {"of": "late", "config": "no.py"}}), "arm x: got"),
        (dict(arms={"x": {"of": "lost"}}), "arms: got 'lost'"),
        (dict(arms={"x, y": {"of": "late"}}), "arms: got 'x, y', allowed names without commas"),
        (dict(arms={"La te": {"of": "late"}, "la-te": {"of": "late"}}), "arms: got 'La te'"),
        (
            dict(arms={"x": {"config": f"{FILE}:tiny", "set": ("drift.draws=2",)}}),
            "with get_config",
        ),
        (
            dict(arms={"late": {"config": "configs/mar_small.py:tiny", "set": ("drift.draws=2",)}}),
            "set: got 'drift.draws=2'",
        ),
        (
            dict(arms={"x": {"config": "configs/drift_mar_small.py:tiny", "set": ("seed=two",)}}),
            "seed: got 'two'",
        ),
    ],
)
def test_a_wrong_sweep_is_refused_in_one_line(made, changes, complaint):
    with pytest.raises(ValueError, match="allowed") as error:
        made(**changes)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


def _record(arm, seed, order, against="", **figures):
    cost = {"steps": 5, "train_s": 2.0, "measure_s": 1.0}
    common = {"question": "draws", "sweep": "", "cost": cost, "asked": {"images": 9}}
    return common | dict(arm=arm, seed=seed, order=order, against=against, figures=figures)


def test_differences_are_taken_seed_by_seed():
    """A spread that both arms share is not in the interval."""
    records = [_record("a", seed, 0, frechet=10.0 * seed) for seed in range(3)]
    records += [
        _record("b", seed, 1, "a", frechet=10.0 * seed + 1 + 0.1 * seed) for seed in (0, 1, 2)
    ]
    a, b = ablation_table.summary(records)
    assert a["figures"]["frechet"]["std"] == 10 and a["differences"] == {}
    found = b["differences"]["frechet"]
    # Student's t of 2 degrees at 97.5 %: 4.3027; standard error 0.1 / sqrt(3).
    half = 4.302652729749464 * 0.1 / 3**0.5
    assert found["mean"] == pytest.approx(1.1)
    assert (found["low"], found["high"]) == pytest.approx((1.1 - half, 1.1 + half))
    assert "+0.85 to +1.35)" in ablation_table.sentence(b)


def test_contraction_is_told_by_calls_and_by_what_images_became():
    def record(arm, order, calls, frechet, against=""):
        bounded = {"backbone_calls": calls, "tokens_per_call": 64 / calls, "deviation": 0.01}
        figures = dict(frechet=frechet, ahead_bounded=bounded, contraction={"0.2": 0.5})
        return _record(arm, 0, order, against, **figures) | {"question": "contraction"}

    records = [record("reference", 0, 32.0, 5.0), record("noise", 1, 16.0, 6.0, "reference")]
    rows = ablation_table.summary(records)
    said = ablation_table.sentence(rows[1])
    assert "distance +1.00 (one seed); tokens per call +2.00 (one seed)" in said
    head, _, first, second = ablation_table.lines(rows)[2:6]
    assert "calls, bounded | tokens per call, bounded | deviation, bounded | moved by 0.2" in head
    assert "| 32.0 | 2.00 | 0.0100 | 0.50 |" in first and "| 16.0 | 4.00 |" in second


def test_one_seed_has_no_interval():
    records = [_record("a", 0, 0, frechet=1.0), _record("b", 0, 1, "a", frechet=0.0)]
    assert "-1.00 (one seed)" in ablation_table.sentence(ablation_table.summary(records)[1])
