"""Sampling in parts: which images are made depends on the seed and the image's size alone."""

import ml_collections
import numpy as np
import pytest
import tiny

from driftar_jax.evaluation import compare
from driftar_jax.sampling import generator


@pytest.mark.parametrize(
    ("shape", "size"),
    [((28, 28, 1), 8192), ((256, 256, 3), 1024), ((512, 512, 3), 256), ((2**15, 2**15, 3), 1)],
)
def test_parts_are_bounded_in_bytes(shape, size):
    assert compare.part_size(shape) == size
    assert size == 1 or size * np.prod(shape) <= compare.PART_BYTES


def test_parts_have_seeds_of_their_own():
    seeds = [compare.part_seed(seed, number) for seed in (0, 1) for number in range(4)]
    assert len(set(seeds)) == len(seeds) and all(0 <= s < 2**31 for s in seeds)
    assert compare.part_seed(5, 0) == 5


def test_samples_are_measured_part_by_part(monkeypatch):
    """Every label once, in order, under the seeds of the parts."""
    calls = []

    def sample(loaded, settings, labels, seed, batch_size):
        calls.append((list(labels), seed, batch_size))
        return tiny.batch(len(labels))["image"]

    class Tally:
        def __init__(self):
            self.taken = 0

        def add(self, images, labels):
            assert len(images) == len(labels)
            self.taken += len(images)

        def quality(self):
            return self.taken

    class Real:
        images = tiny.batch(1)["image"]
        ledger = compare.quality.Ledger()

        def tally(self, num):
            return Tally()

    monkeypatch.setattr(compare, "sample", sample)
    monkeypatch.setattr(compare, "MOST_IMAGES", 4)
    assert compare.judge(None, None, Real(), np.arange(10), 3, 2) == 10
    assert [labels for labels, _, _ in calls] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [seed for _, seed, _ in calls] == [compare.part_seed(3, n) for n in range(3)]
    assert set(Real.ledger.seconds) == {"sampling"}


def _loaded(task, **changes):
    config = ml_collections.ConfigDict(tiny.config(task, **changes))
    return generator.Generator(config, tiny.parts(task, **changes), {}, 0, {})


def test_the_rows_that_were_asked_for():
    own, drift = _loaded("host"), _loaded("drift", drift__guidance_max=3.0)
    runs = compare.Runs(own, drift)
    plain = compare.methods(runs)
    asked = compare.Extras(controls=True, guidance=(2.0,))
    rows = {m.name: m for m in compare.methods(runs, asked)}
    assert rows.keys() - {m.name for m in plain} == {
        "own, two_stage to 1",
        "own, linear to 1",
        "own, cosine to 1",
        "own, 1 AR steps",
        "drift, 1 AR steps",
        "own, guidance 2",
        "drift, guidance 2 extrapolate",
        "drift, guidance 2 trained",
    }
    assert rows["own, linear to 1"].settings.head_steps == (4, 2, 1)
    assert rows["own, guidance 2"].settings.guided and rows["own, guidance 2"].baseline
    assert not rows["drift, guidance 2 trained"].settings.guided
    assert compare.methods(compare.Runs(own, _loaded("drift")), asked)[-1].name.endswith(
        "extrapolate"
    )


def test_further_numbers_of_ar_steps_are_for_both_heads_and_come_once():
    own, drift = _loaded("host"), _loaded("drift")
    runs, base = compare.Runs(own, drift), own.settings().ar_steps
    plain = {m.name for m in compare.methods(runs)}
    asked = compare.Extras(controls=True, ar_steps=(1, base, 5))
    names = [m.name for m in compare.methods(runs, asked)]
    assert len(names) == len(set(names)) + 2  # the own head with fewer evaluations
    rows = {m.name: m for m in compare.methods(runs, compare.Extras(ar_steps=(1, base, 5)))}
    assert rows.keys() - plain == {f"{h}, {n} AR steps" for h in ("own", "drift") for n in (1, 5)}
    assert rows["own, 5 AR steps"].baseline and not rows["drift, 5 AR steps"].baseline
    assert rows["drift, 5 AR steps"].settings.ar_steps == 5


def test_a_draft_model_has_a_row_among_the_rivals_and_so_has_its_control():
    own, drift = _loaded("host"), _loaded("drift")
    runs = compare.Runs(own, drift, own.with_drafter(_loaded("host", host__width=6)))
    asked = compare.Extras(rivals=True, guidance=(2.0,))
    rows = {m.name: m for m in compare.methods(runs, asked)}
    without = compare.methods(compare.Runs(own, drift), asked)
    drafted, alone = "own, 4 AR steps drafted, guidance 2", "own, 2 AR steps, guidance 2"
    assert rows.keys() - {m.name for m in without} == {drafted, alone}
    assert {m.name for m in without if m.rival} == {
        f"{head}, {way}, guidance 2"
        for head in ("own", "drift")
        for ways in compare.RIVALS.values()
        for way in ways
    }
    assert runs.of(rows[drafted]) is runs.drafted and runs.of(rows[alone]) is own
    assert runs.of(without[0]) is own and runs.of(rows["drift"]) is drift
    settings = rows[drafted].settings
    settings.check(runs.drafted.model)
    cost = compare.costs(runs.drafted, settings, np.array([0]), 1)
    # The first of three AR steps is the target's; one check is of both others.
    assert (cost.backbone_calls, cost.draft_calls, cost.backbone_rows) == (2, 2, 4)
    assert rows[alone].settings.ar_steps == 2 and cost.head_evaluations == 4 * own.settings().nfe
