"""Scores of samples against pictures that a run never sees."""

import json

import numpy as np
import pytest
import tiny

import driftar_jax
from driftar_jax.training import held_out, runs, specs


def _score(first, second, real):
    """The definition, picture by picture in float64."""
    total = 0.0
    for x, other, y in zip(first, second, real, strict=True):
        x, other, y = (a.astype(np.float64).ravel() / 127.5 - 1 for a in (x, other, y))
        far = lambda a, b: np.linalg.norm(a - b) / np.sqrt(a.size)  # noqa: E731
        total += (far(x, y) + far(other, y)) / 2 - far(x, other) / 2
    return total / len(real)


def _pictures(seed, count=4, mean=128.0, spread=30.0):
    drawn = np.random.default_rng(seed).normal(mean, spread, (count, 2, 3, 1))
    return np.clip(drawn.round(), 0, 255).astype(np.uint8)


def test_the_score_is_its_definition():
    sets = [_pictures(seed) for seed in range(3)]
    assert held_out.energy_score(*sets) == pytest.approx(_score(*sets), rel=1e-12)
    with pytest.raises(ValueError, match="^images: got shapes"):
        held_out.energy_score(sets[0], sets[1][:2], sets[2])


def test_nothing_scores_lower_than_the_law_of_the_pictures():
    real, many = _pictures(0, 4000), {"count": 4000}
    best = held_out.energy_score(_pictures(1, **many), _pictures(2, **many), real)
    for law in ({"mean": 150}, {"spread": 10}, {"spread": 60}, {"spread": 0}):
        other = held_out.energy_score(
            _pictures(3, **many, **law), _pictures(4, **many, **law), real
        )
        assert other > best + 0.005, law


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train__judge": "runs/judge"}, "train.judge: got 'runs/judge', allowed '' while"),
        ({"train__held_out_every": 2, "data__name": "latents:x"}, "train.held_out_every: got 2, "),
        ({"train__held_out_every": 2, "train__judge": "/nowhere"}, "train.judge: got '/nowhere', "),
    ],
)
def test_what_does_not_fit_is_one_line(changes, said):
    settings = tiny.config("drift")
    settings.data.update(image_size=8, patch_size=2)
    for name, value in changes.items():
        section, field = name.split("__")
        settings[section][field] = value
    with pytest.raises(ValueError) as refused:
        held_out.open_held_out(settings, tiny.IMAGES)
    assert str(refused.value).startswith(said) and "\n" not in str(refused.value)


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_a_run_scores_itself_and_goes_on_where_it_was(tmp_path):
    from configs import classifier, mar_small

    judge = classifier.get_config("tiny")
    judge.train.update(steps=2, checkpoint_every=2)
    with runs.open_run(judge, str(tmp_path / "judge")) as run:
        run.go_on(run.start(), say=lambda line: None)

    settings = mar_small.get_config("tiny")
    # Pictures of the first step come before the first line of the log.
    settings.train.update(held_out_every=2, judge=str(tmp_path / "judge"), sample_every=1)
    for steps in (2, 3):  # the second goes on from the first
        settings.train.steps = steps
        with runs.open_run(settings, str(tmp_path / "run")) as run:
            state = run.start()
            run.go_on(state, say=lambda line: None)
    lines = (tmp_path / "run" / "held_out.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["step"] for record in records] == [2, 3]
    shown = sorted(path.name for path in (tmp_path / "run" / "samples").iterdir())
    assert shown == [f"step_{step:08d}.png" for step in (1, 2, 3)]
    for record in records:
        assert record["split"] == "test" and record["pictures"] == held_out.PICTURES
        assert 0 < record["energy_score"] < 2 and 0 <= record["accuracy"] <= 1
    # The averaged parameters of the checkpoint, asked the same, score the same.
    held = held_out.open_held_out(settings, specs.image_spec(settings))
    again = held.measure(driftar_jax.load(tmp_path / "run"))
    assert again == {name: records[-1][name] for name in again}
