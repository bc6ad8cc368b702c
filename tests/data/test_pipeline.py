"""Order, resumption, processes, flips; and every refusal of the pipeline."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest

from driftar_jax.data import pipeline, source

LEFT_OPEN = """
import sys, numpy as np
from driftar_jax.data import pipeline, source
source.MEMORY_LIMIT = 0
part = pipeline.load_source("digits8", "test", data_dir=sys.argv[1])
batches = pipeline.Batches(part, batch_size=32, seed=0, prefetch=8)
next(batches)
print("left open", flush=True)
"""


def _take(batches, count):
    with batches:
        return [next(batches) for _ in range(count)]


def _same(got, want):
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["label"], other["label"])


@pytest.fixture(params=["in memory", "read each time"])
def part(request, data_dir, digits, monkeypatch):
    """The 299 held-out digits, by both roads a batch can take."""
    if request.param == "in memory":
        return digits
    monkeypatch.setattr(source, "MEMORY_LIMIT", 0)
    slow = pipeline.load_source("digits8", "test", data_dir=data_dir)
    assert not slow.in_memory and digits.in_memory
    return slow


def test_batches_have_the_promised_form(part):
    (batch,) = _take(pipeline.Batches(part, batch_size=6, seed=0), 1)
    assert batch["image"].shape == (6, 8, 8, 1) and batch["image"].dtype == np.uint8
    assert batch["label"].shape == (6,) and batch["label"].dtype == np.int32


def test_both_roads_and_any_prefetch_give_the_same_batches(part, digits):
    want = _take(pipeline.Batches(digits, batch_size=50, seed=3, flip=True, prefetch=0), 8)
    for prefetch in (0, 1, 7):
        batches = pipeline.Batches(part, batch_size=50, seed=3, flip=True, prefetch=prefetch)
        _same(_take(batches, 8), want)


def _positions(batches):
    """Which images were drawn, as rows of pixels, over all batches."""
    return np.concatenate([b["image"].reshape(len(b["image"]), -1) for b in batches])


def test_each_epoch_is_another_permutation_of_the_set(digits):
    # 299 = 13 * 23: thirteen batches are an epoch exactly.
    drawn = _positions(_take(pipeline.Batches(digits, batch_size=23, seed=1), 26))
    whole = pipeline.all_images(digits)[0].reshape(299, -1)
    epochs = drawn[:299], drawn[299:]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch, axis=0), np.sort(whole, axis=0))
        assert sorted(map(bytes, epoch)) == sorted(map(bytes, whole))
    assert (epochs[0] != epochs[1]).any(axis=1).mean() > 0.9
    other = _positions(_take(pipeline.Batches(digits, batch_size=23, seed=2), 13))
    assert (epochs[0] != other).any(axis=1).mean() > 0.9


def test_order_does_not_depend_on_the_batch_size(digits):
    small = _positions(_take(pipeline.Batches(digits, batch_size=10, seed=1, flip=True), 42))
    large = _positions(_take(pipeline.Batches(digits, batch_size=105, seed=1, flip=True), 4))
    np.testing.assert_array_equal(small, large)


def test_unshuffled_batches_keep_the_order_of_the_set(part):
    got = _take(pipeline.Batches(part, batch_size=100, seed=9, shuffle=False), 4)
    images, labels = pipeline.all_images(part)
    np.testing.assert_array_equal(_positions(got)[:299], images.reshape(299, -1))
    np.testing.assert_array_equal(np.concatenate([b["label"] for b in got])[299:], labels[:101])


@pytest.mark.parametrize("stop", [0, 1, 5, 9])
def test_restored_batches_go_on_bit_for_bit_across_epochs(part, stop):
    settings = dict(batch_size=70, seed=5, flip=True)  # an epoch ends inside the fifth batch
    whole = _take(pipeline.Batches(part, **settings), 14)
    first = pipeline.Batches(part, **settings)
    _same([next(first) for _ in range(stop)], whole[:stop])
    state = json.loads(json.dumps(first.state()))
    first.close()
    assert first.state() == state and state["batch"] == stop

    second = pipeline.Batches(part, **settings)
    next(second)  # restoring also works on an iterator that has run
    second.restore(state)
    assert second.state() == state
    _same(_take(second, 14 - stop), whole[stop:])


@pytest.mark.parametrize("count", [2, 3])
def test_slices_of_processes_join_to_the_batch_of_one(part, count):
    settings = dict(batch_size=66, seed=4, flip=True)
    whole = _take(pipeline.Batches(part, **settings), 6)
    slices = [
        _take(pipeline.Batches(part, **settings, process_index=i, process_count=count), 6)
        for i in range(count)
    ]
    joined = [
        {key: np.concatenate([s[key] for s in step]) for key in ("image", "label")}
        for step in zip(*slices, strict=True)
    ]
    _same(joined, whole)


def test_state_of_one_process_restores_two(digits):
    settings = dict(batch_size=66, seed=4)
    one = pipeline.Batches(digits, **settings)
    _take(one, 3)
    want = _take(pipeline.Batches(digits, **settings), 4)[3]
    two = pipeline.Batches(digits, **settings, process_index=1, process_count=2)
    two.restore(one.state())
    np.testing.assert_array_equal(_take(two, 1)[0]["image"], want["image"][33:])


def test_half_of_the_images_are_mirrored_and_nothing_else(part):
    plain = _take(pipeline.Batches(part, batch_size=100, seed=0), 5)
    flipped = _take(pipeline.Batches(part, batch_size=100, seed=0, flip=True), 5)
    before, after = (np.concatenate([b["image"] for b in x]) for x in (plain, flipped))
    kept = (after == before).all(axis=(1, 2, 3))
    mirrored = (after == before[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (kept | mirrored).all()
    assert 0.4 < kept.mean() < 0.6
    np.testing.assert_array_equal(plain[2]["label"], flipped[2]["label"])


def test_batches_own_their_memory(digits):
    want = pipeline.all_images(digits)[0]
    for batch in _take(pipeline.Batches(digits, batch_size=299, seed=0), 2):
        batch["image"][:] = 0
    digits[3]["image"][:] = 0
    pipeline.all_images(digits)[0][:] = 0
    np.testing.assert_array_equal(pipeline.all_images(digits)[0], want)


def test_closed_batches_refuse_to_go_on(digits):
    batches = pipeline.Batches(digits, batch_size=4, seed=0)
    next(batches)
    batches.close()
    batches.close()
    with pytest.raises(ValueError, match="after close"):
        next(batches)


def test_open_batches_do_not_hold_up_the_exit(data_dir, digits):
    command = [sys.executable, "-c", LEFT_OPEN, data_dir]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "left open\n", child.stderr.read()
    start = time.monotonic()
    _, err = child.communicate(timeout=20)
    assert child.returncode == 0 and err == ""
    assert time.monotonic() - start < 10


def test_labels_outside_the_classes_are_refused():
    def unlabelled(indices):
        return [(np.zeros((2, 3, 1), np.uint8), -1) for _ in indices]

    with pytest.raises(ValueError, match="data.split: got 'test' .* has label -1, allowed labels"):
        source.ImageSource(
            unlabelled,
            5,
            name="hidden",
            split="test",
            image_shape=(2, 3, 1),
            class_names=["a", "b"],
            fingerprint="hidden",
        )


BAD_BATCHES = [
    (dict(batch_size=0), "train.batch_size: got 0, allowed an int from 1 to 299"),
    (dict(batch_size=300), "train.batch_size: got 300, allowed an int from 1 to 299"),
    (dict(batch_size=2.0), "train.batch_size: got 2.0, allowed an int from 1 to 299"),
    (dict(batch_size=9, process_count=2), "train.batch_size: got 9, allowed multiples of"),
    (dict(process_index=2, process_count=2), "process_index: got 2, allowed an int from 0 to 1"),
    (dict(process_count=0), "process_count: got 0, allowed"),
    (dict(seed=-1), "seed: got -1, allowed an int from 0 to 9223372036854775807"),
    (dict(seed=True), "seed: got True, allowed"),
    (dict(prefetch=-1), "data.prefetch: got -1, allowed"),
    (dict(flip=1), "data.flip: got 1, allowed True or False"),
    (dict(shuffle="no"), "data.shuffle: got 'no', allowed True or False"),
]


@pytest.mark.parametrize("changed, message", BAD_BATCHES)
def test_bad_settings_of_batches(digits, changed, message):
    with pytest.raises(ValueError) as error:
        pipeline.Batches(digits, **{**dict(batch_size=8, seed=0), **changed})
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changed", [dict(seed=1), dict(batch_size=7), dict(flip=True), dict(shuffle=False)]
)
def test_state_of_another_run_is_refused(digits, changed):
    settings = dict(batch_size=8, seed=0)
    state = pipeline.Batches(digits, **{**settings, **changed}).state()
    (field,) = changed
    with pytest.raises(ValueError, match=f"data state: got {field} .*, allowed"):
        pipeline.Batches(digits, **settings).restore(state)


def test_state_of_another_set_or_of_nothing_is_refused(digits, data_dir):
    batches = pipeline.Batches(digits, batch_size=8, seed=0)
    train = pipeline.load_source("digits8", "train", data_dir=data_dir)
    with pytest.raises(ValueError, match="data state: got source 'digits8/1.0.0.train"):
        batches.restore(pipeline.Batches(train, batch_size=8, seed=0).state())
    with pytest.raises(ValueError, match="data state: got no "):
        batches.restore({})
    with pytest.raises(ValueError, match="data state batch: got -1"):
        batches.restore({**batches.state(), "batch": -1})
