"""How far to draft: what lengths say, `gamma=auto` and its settings, and what drafts cost."""

import numpy as np
import pytest
import tiny

from driftar_jax.cli import sampling_flags
from driftar_jax.sampling import batches, draft_count
from driftar_jax.sampling.settings import Settings
from driftar_jax.training import tasks
from driftar_jax.types import Speculation

SETTINGS = Settings(method="drift", ar_steps=4)


def _found(lengths, calls):
    """What a batch of two images reports."""
    two, bins = np.zeros(2, np.int32), np.zeros((2, 20), np.int32)
    return Speculation(
        backbone_calls=two + calls,
        draft_calls=two + 1,
        head_evaluations=two + 3,
        batch_calls=np.int32(calls),
        batch_draft_calls=np.int32(2),
        batch_rows=np.int32(2 * calls),
        lengths=np.tile(np.asarray(lengths, np.int32), (2, 1)),
        judged=bins + np.eye(20, dtype=np.int32)[:2],
        accepted=bins + np.eye(20, dtype=np.int32)[:2] * [[1], [0]],
    )


class Machine:
    """A clock that samplers move: so many seconds for plain decoding and for each gamma."""

    def __init__(self, monkeypatch, seconds, lengths):
        self.now, self.asked = 0.0, []

        def plain(parts, settings, *_):
            self.now += seconds[0]
            return None, None

        def drafted(parts, rule, settings, *_):
            self.now += seconds[rule.gamma]
            self.asked.append(rule.gamma)
            return None, _found(lengths[: rule.gamma + 1], calls=3)

        monkeypatch.setattr(draft_count.plain, "generate", plain)
        monkeypatch.setattr(draft_count.drafted, "generate", drafted)

    def choose(self, **changes):
        parts = tiny.parts("drift")
        labels = np.arange(3, dtype=np.int32)
        settings = SETTINGS.changed(**changes)
        return draft_count.choose(parts, settings, {}, 2, labels, clock=lambda: self.now)


def test_chances_are_those_of_a_brute_count():
    rng, truth = np.random.default_rng(0), (0.8, 0.5, 0.3)
    stands = rng.random((40_000, 3)) < truth
    lengths = np.bincount(np.cumprod(stands, axis=1).sum(axis=1), minlength=4)
    np.testing.assert_allclose(draft_count.acceptance(lengths), truth, atol=0.02)


def test_a_draft_that_was_never_reached_has_the_chance_of_the_one_before():
    np.testing.assert_array_equal(draft_count.acceptance(np.array([6, 2, 0, 0])), [0.25, 0.0, 0.0])
    np.testing.assert_array_equal(draft_count.acceptance(np.array([5, 0, 0])), [0.0, 0.0])


def test_expected_groups_are_the_mean_of_accepted_ones_and_one():
    lengths = np.array([7, 5, 2, 1])
    chances = draft_count.acceptance(lengths)
    mean = (lengths * np.arange(4)).sum() / lengths.sum()
    np.testing.assert_allclose(draft_count.groups_per_call(chances, 3), 1 + mean)
    assert draft_count.groups_per_call(chances, 0) == 1


@pytest.mark.parametrize(
    ("chances", "seconds", "want"),
    [
        ((1.0, 1.0), {0: 1.0, 1: 1.1, 2: 1.2}, 2),  # drafts are right and nearly free
        ((0.5, 0.5), {0: 1.0, 1: 1.4, 2: 1.8}, 1),  # 1.07 groups a second, 0.97 with two drafts
        ((0.0, 0.0), {0: 1.0, 1: 1.1, 2: 1.2}, 0),
        ((0.5, 0.5), {0: 1.0, 1: 1.5, 2: 1.75}, 0),  # no gain: the plain one
    ],
)
def test_the_best_is_what_yields_most_per_second(chances, seconds, want):
    assert draft_count.best(chances, seconds) == want


def test_the_fastest_is_chosen(monkeypatch):
    """Two drafts stand nine times in ten: 2.7 groups a call of 2 seconds."""
    machine = Machine(monkeypatch, {0: 8.0, 1: 7.0, 2: 6.0}, [1, 1, 18])
    found = machine.choose()
    assert found.predicted == 2 and found.settings == SETTINGS.changed(gamma=2)
    assert found.seconds == {0: 8.0, 1: 7.0, 2: 6.0}
    assert found.finding_out == machine.now


def test_a_wrong_prediction_is_not_believed(monkeypatch):
    """By acceptance two drafts would pay; a batch takes longer all the same."""
    found = Machine(monkeypatch, {0: 8.0, 1: 8.2, 2: 8.1}, [1, 1, 18]).choose()
    assert found.predicted == 2 and found.settings.gamma == 0


def test_nothing_accepted_is_plain_without_further_measuring(monkeypatch):
    machine = Machine(monkeypatch, {0: 8.0, 1: 1.0, 2: 1.0}, [20, 0, 0])
    assert machine.choose().settings.gamma == 0
    assert machine.asked == [2]  # the probe


def test_there_are_no_more_drafts_than_steps(monkeypatch):
    machine = Machine(monkeypatch, {0: 8.0, 1: 7.0, 2: 6.0}, [1, 1, 18])
    machine.choose(ar_steps=2)
    assert set(machine.asked) == {1}


@pytest.mark.parametrize(("text", "want"), [(None, None), ("auto", "auto"), ("0", 0), ("12", 12)])
def test_a_flag_is_read(text, want):
    assert sampling_flags.parse_count("gamma", text) == want
    assert SETTINGS.changed(gamma=want).gamma == {None: SETTINGS.gamma, "auto": -1}.get(want, want)


@pytest.mark.parametrize("text", ["-1", "1.5", "many", ""])
def test_a_flag_that_cannot_be_is_named(text):
    with pytest.raises(ValueError, match="^gamma: got .*, allowed auto or a whole number from 0"):
        sampling_flags.parse_count("gamma", text)


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("drift", {"gamma": -2}, r"gamma: got -2, allowed -1 \(chosen by measuring\) or 0 to 3"),
        ("drift", {"gamma": 4}, r"gamma: got 4, allowed -1 \(chosen by measuring\) or 0 to 3"),
        ("drift", {"gamma": 1, "method": "mean"}, r"gamma: got 1, allowed 0 \(method drift only"),
        ("host", {"gamma": 1, "method": "own"}, r"gamma: got 1, allowed 0 \(no draft head"),
        ("drift", {"rule": "exact"}, "rule: got 'exact', allowed gaussian | coupled | feature"),
        ("drift", {"delta": -1.0}, "delta: got -1.0, allowed a number from 0"),
        ("drift", {"delta": float("nan")}, "delta: got nan, allowed a number from 0"),
    ],
)
def test_settings_that_cannot_be_are_named(task, changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        SETTINGS.changed(**changes).check(tiny.parts(task))


def test_one_step_has_nothing_to_draft():
    settings = SETTINGS.changed(ar_steps=1, gamma=2)
    settings.check(tiny.parts("drift"))
    assert settings.drafts == 0 and SETTINGS.changed(gamma=2).drafts == 2


def test_counts_of_batches_are_joined_without_their_padding():
    found = batches.joined([_found([1, 2, 0], 3), _found([0, 1, 1], 5)], num=3)
    np.testing.assert_array_equal(found.backbone_calls, [3, 3, 5])
    np.testing.assert_array_equal(found.batch_calls, [3, 5])
    counts, summary = batches.drafted_counts(found), batches.summary(found)
    assert counts.backbone_calls == 11 / 3 and counts.backbone_rows == 8
    assert summary["accepted_lengths"] == [2, 5, 1]
    assert summary["accepted_per_call"] == 7 / 8 and summary["calls_of_batch"] == 4
    # Image 0 of a batch has a judged token of the lowest entropy, image 1 of the next.
    assert [b["tokens"] for b in summary["by_entropy"]] == [2, 1]
    assert [b["accepted"] for b in summary["by_entropy"]] == [1.0, 0.0]


@pytest.mark.slow
def test_drafts_make_images_of_the_same_kind():
    """Through `sample_images`: uint8, means of counts, no dependence on the batch."""
    parts = tiny.parts("drift")
    params = tiny.params(tasks.build(tiny.config("drift"), tiny.IMAGES).init)
    settings = Settings(method="drift", ar_steps=4, gamma=2, rule="feature", delta=9.0)
    labels = np.array([0, 1, 2])
    images, counts = batches.sample_images(parts, settings, params, labels, 3)
    again, found = batches.sample_drafted(parts, settings, params, labels, 3, batch_size=2)
    assert images.shape == (3, 4, 6, 1) and images.dtype == np.uint8
    # uint8 of tokens that differ by rounding.
    assert np.abs(images.astype(int) - again).max() <= 1
    assert counts.backbone_calls == 2 and counts.draft_calls == 2 and counts.head_evaluations == 4
    np.testing.assert_array_equal(found.backbone_calls, [2, 2, 2])
    assert found.batch_calls.shape == (2,)
    with pytest.raises(ValueError, match="^gamma: got -1, allowed a number from 0"):
        batches.sample_drafted(parts, settings.changed(gamma=-1), params, labels, 3)
