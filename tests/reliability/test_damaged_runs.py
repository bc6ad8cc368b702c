"""Files of a run cut, emptied, zeroed or with one bit flipped: noticed, named, gone round."""

import json
import pathlib
import random
import shutil

import chex
import jax
import numpy as np
import pytest
import runs_to_kill

from driftar_jax.data import latents
from driftar_jax.storage import checkpoints, digests


def _flip(data, draw):
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]


DAMAGE = {
    "cut": lambda data, draw: data[: draw.randrange(len(data))],
    "empty": lambda data, draw: b"",
    "zero": lambda data, draw: b"\0" * len(data) if any(data) else b"\1" + data[1:],
    "flip": _flip,
    "gone": None,
}


def _spoil(path, kind, draw):
    """Damage the file; gives back what undoes it."""
    whole = path.read_bytes()
    change = DAMAGE[kind]
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(whole, draw))
    return lambda: path.write_bytes(whole)


def _files(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of two steps with both checkpoints."""
    folder = tmp_path_factory.mktemp("run")
    made, batches = runs_to_kill.open_loop(folder, 2)
    made.run(made.fresh_state(), batches, say=lambda line: None)
    batches.close()
    made.close()
    return folder


@pytest.fixture
def opened(workdir):
    made, batches = runs_to_kill.open_loop(workdir, 2)
    yield made, batches
    batches.close()
    made.close()


@pytest.mark.parametrize(
    "seeds", [range(1), pytest.param(range(1, 8), marks=pytest.mark.slow)], ids=["150", "1000"]
)
def test_every_damage_to_every_file_is_noticed(workdir, opened, seeds):
    tried = sum(_damage_every_file(workdir, opened[0], random.Random(seed)) for seed in seeds)
    assert tried >= 150 * len(seeds) and opened[0].checkpoints.damage(2) is None


def _damage_every_file(workdir, made, draw):
    assert made.checkpoints.newest_whole() == (2, {})
    folder, tried = workdir / "checkpoints" / "2", 0
    for path in _files(folder):
        inside = path.parent != folder
        for kind in DAMAGE:
            undo = _spoil(path, kind, draw)
            wrong = made.checkpoints.damage(2)
            if inside:
                assert wrong and path.relative_to(folder).as_posix() in wrong, (path, kind)
            elif path.name == digests.DIGESTS and kind != "gone":
                assert wrong, kind
            undo()
            tried += inside
    return tried


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_offered(workdir, opened):
    made, batches = opened
    path = max(_files(workdir / "checkpoints" / "2" / "params"), key=lambda p: p.stat().st_size)
    undo = _spoil(path, "flip", random.Random(1))
    with pytest.raises(ValueError) as caught:
        made.restore(batches)
    undo()
    message = str(caught.value)
    assert "\n" not in message and message.startswith("checkpoint: got step 2 of ")
    assert path.name in message
    assert "step 1 is whole: train --restore=whole goes on from it" in message
    assert int(made.restore(batches).step) == 2


def test_files_beside_the_arrays_are_harmless_or_named(workdir, opened):
    made, batches = opened
    want = made.restore(batches)
    draw, folder = random.Random(2), workdir / "checkpoints" / "2"
    for path in (p for p in _files(folder) if p.parent == folder):
        for kind in ("cut", "flip", "gone"):
            undo = _spoil(path, kind, draw)
            again, batches = runs_to_kill.open_loop(workdir, 2)
            try:
                chex.assert_trees_all_equal(again.restore(batches), want)
            except ValueError as error:
                assert "\n" not in str(error) and ", allowed " in str(error)
            finally:
                undo()
                batches.close()
                again.close()


def test_falling_back_sets_the_damaged_one_aside(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    made, batches = runs_to_kill.open_loop(folder, 2)
    want = jax.device_get(made.run(made.fresh_state(), batches, say=lambda line: None))
    path = folder / "checkpoints" / "2" / "position" / "metadata"
    _spoil(path, "cut", random.Random(3))
    said = []
    state = made.restore(batches, fall_back=True, say=said.append)
    assert int(state.step) == 1 and batches.state()["batch"] == 1
    assert said == [
        f"step 2: a damaged position/metadata; moved to {folder / 'damaged' / '2'}",
    ]
    chex.assert_trees_all_equal(made.run(state, batches, say=lambda line: None), want)
    for step in ("1", "2"):
        _spoil(folder / "checkpoints" / step / "manifest" / "metadata", "flip", random.Random(4))
    with pytest.raises(ValueError, match="allowed a workdir with at least one whole checkpoint"):
        made.restore(batches, fall_back=True)
    batches.close()
    made.close()


def _cut_arrays(folder):
    """Half of what a copy would have brought."""
    (folder / digests.DIGESTS).unlink()
    for path in _files(folder / "params"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BROKEN = {
    "empty": (lambda f: (shutil.rmtree(f), f.mkdir()), "no manifest"),
    "half": (lambda f: shutil.rmtree(f / "params"), "no params"),
    "half, no digests": (
        lambda f: (shutil.rmtree(f / "train"), (f / digests.DIGESTS).unlink()),
        "no train",
    ),
    "no position": (lambda f: shutil.rmtree(f / "position"), "no position"),
    "cut, no digests": (_cut_arrays, "an unreadable params"),
    "cut facts, no digests": (
        lambda f: (
            (f / digests.DIGESTS).unlink(),
            (f / "position/metadata").write_text('{"ba'),
        ),
        "an unreadable position",
    ),
    "digests of nothing": (
        lambda f: (f / digests.DIGESTS).write_text("{}"),
        "no digest of ema",
    ),
    "not fetched": (
        lambda f: (f / "position/metadata").write_text(
            "version https://git-lfs.github.com/spec/v1"
        ),
        "position/metadata that is a Git LFS pointer, not the file itself: fetch it with "
        "`git lfs pull`",
    ),
    "another's name": (lambda f: f.rename(f.with_name("7")), "the manifest of step 2"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_steps_that_are_not_whole_are_named_and_set_aside(workdir, tmp_path, case):
    folder = tmp_path / "run"
    shutil.copytree(workdir, folder)
    spoil, words = BROKEN[case]
    spoil(folder / "checkpoints" / "2")
    step = "7" if case == "another's name" else "2"
    made, batches = runs_to_kill.open_loop(folder, 2)
    with pytest.raises(ValueError) as caught:
        made.restore(batches)
    line = str(caught.value)
    assert line.startswith(f"checkpoint: got step {step} of ") and "\n" not in line
    assert "step 1 is whole: train --restore=whole goes on from it" in line
    said = []
    state = made.restore(batches, fall_back=True, say=said.append)
    assert int(state.step) == 1
    assert said == [f"step {step}: {words}; moved to {folder / 'damaged' / step}"]
    batches.close()
    made.close()


NAMES = ["2 (copy)", "step_2", "0000002", "2.bak", "-2", "２", "latest"]


@pytest.mark.parametrize("alone", [False, True])
def test_copies_beside_the_steps_are_named_and_never_begin_a_new_run(workdir, tmp_path, alone):
    """Copied, renamed, zero-padded; or all steps copied one folder deeper."""
    folder = tmp_path / "run"
    shutil.copytree(workdir, folder)
    steps = folder / "checkpoints"
    for name in NAMES:
        shutil.copytree(steps / "2", steps / name)
    shutil.copytree(workdir / "checkpoints", steps / "checkpoints")
    for name in (".trash", "lost+found", "3.orbax-checkpoint-tmp"):  # what is nobody's step
        (steps / name / "params").mkdir(parents=True) if "tmp" in name else (steps / name).mkdir()
    (steps / "9").write_text("")
    made, batches = runs_to_kill.open_loop(folder, 2)
    assert set(made.checkpoints.strangers()) == {*NAMES, "checkpoints"}
    if alone:
        for step in ("1", "2"):
            shutil.rmtree(steps / step)
        made.checkpoints.reload()
        with pytest.raises(ValueError, match="^checkpoint: got '-2', .* called by their step"):
            made.restore(batches)
    else:
        said = []
        assert int(made.restore(batches, say=said.append).step) == 2
        assert said == [f"{steps}: '-2', '0000002', '2 (copy)', ... is no step and is not read"]
    batches.close()
    made.close()


def test_a_step_without_digests_is_read_where_it_is_whole(workdir, tmp_path):
    """Runs of before the digests."""
    folder = tmp_path / "run"
    shutil.copytree(workdir, folder)
    for path in folder.rglob(digests.DIGESTS):
        path.unlink()
    made, batches = runs_to_kill.open_loop(folder, 2)
    assert made.checkpoints.newest_whole() == (2, {})
    assert int(made.restore(batches, fall_back=True).step) == 2
    batches.close()
    made.close()


@pytest.fixture(scope="module")
def latent_set(tmp_path_factory):
    """Twelve latents in three shards, and what they hold."""
    rng = np.random.default_rng(0)
    arrays = rng.standard_normal((12, 2, 2, 3, 4)).astype(np.float32)

    def items(numbers):
        return (
            {"moments": arrays[i, 0], "mirrored": arrays[i, 1], "label": i % 2} for i in numbers
        )

    facts = {
        "shape": [2, 3, 4],
        "class_names": ["a", "b"],
        "splits": {"train": 12},
        "per_shard": 4,
        "vae": "v",
        "vae_fingerprint": "f",
        "source": "s",
    }
    folder = latents.begin(str(tmp_path_factory.mktemp("latents") / "set"), facts)
    latents.write_shards(folder, "train", items, tell=lambda line: None)
    latents.finish(folder)
    return folder, arrays


@pytest.mark.parametrize("shape", [[], [4], [2, 3, 5], [2, 3, "4"], None, 4])
def test_latents_of_no_possible_shape_are_one_line(latent_set, shape):
    facts = latent_set[0] / latents.FACTS
    was = facts.read_text()
    try:
        facts.write_text(json.dumps({**json.loads(was), "shape": shape}))
        with pytest.raises(ValueError, match=r"^data\.name: got [^\n]*$"):
            latents.open_latents(f"latents:{latent_set[0]}", "train", image_size=None)
    finally:
        facts.write_text(was)


@pytest.mark.parametrize("kind", ["flip", "cut", "zero", "gone"])
def test_a_damaged_latent_shard_is_named_and_never_read_as_something_else(latent_set, kind):
    folder, arrays = latent_set
    shard, draw = folder / latents.shard_name("train", 1, 3), random.Random(5)
    whole, refused = shard.read_bytes(), 0
    for _ in range(25 if kind in ("flip", "cut") else 1):
        undo = _spoil(shard, kind, draw)
        try:
            source = latents.open_latents(f"latents:{folder}", "train", image_size=None)
            for i in (4, 5, 6, 7, 0):
                np.testing.assert_array_equal(source[i]["moments"], arrays[i])
        except ValueError as error:
            assert "\n" not in str(error) and str(error).startswith("data.name: got ")
            refused += 1
        finally:
            undo()
    assert shard.read_bytes() == whole and refused > 0


def test_a_damaged_config_is_named(tmp_path):
    path = pathlib.Path(tmp_path) / "config.json"
    for content in (b"", b"\0" * 40, b'{"task": "dri', b"[1, 2]", b"\xff\xfe", b"7"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="no readable config.json") as caught:
            checkpoints.read_config(tmp_path)
        assert "\n" not in str(caught.value)
    path.write_text(json.dumps({"task": "host"}))
    assert checkpoints.read_config(tmp_path) == {"task": "host"}
