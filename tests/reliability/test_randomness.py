"""The same seed, the same picture: whatever the environment says of keys and widths."""

import ast
import contextlib
import json
import pathlib

import drawn_images
import jax
import numpy as np
import pytest
import runs_to_kill

import driftar_jax
from driftar_jax import seeds
from driftar_jax.storage import digests
from driftar_jax.training import journal, loop

PACKAGE = pathlib.Path(driftar_jax.__file__).parent
# Draws by where their dtype stands among the arguments; the dtype of `bernoulli` is that of p.
DRAWS = {
    "normal": 2,
    "uniform": 2,
    "gumbel": 2,
    "exponential": 2,
    "truncated_normal": 4,
    "randint": 4,
}


def _calls(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("jax.random."):
            yield ast.unparse(node.func).removeprefix("jax.random."), node


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if any(_calls(path))]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_key_and_draw_names_its_kind(path):
    for name, call in _calls(path):
        words = {keyword.arg for keyword in call.keywords}
        where = f"{path.name}:{call.lineno} {name}"
        if name in ("key", "PRNGKey", "wrap_key_data"):
            assert path.name == "seeds.py" and "impl" in words, where
        if name in DRAWS:
            assert "dtype" in words or len(call.args) > DRAWS[name], where
        if name == "bernoulli":
            assert "float32" in ast.unparse(call.args[1]), where


def test_keys_of_seeds():
    """Today's keys below 2**32; beyond, the high half is folded into the key of the low one."""
    for seed in (0, 1, 2**31 - 1, 2**31, 2**32 - 1):
        want = jax.random.key_data(jax.random.key(np.uint32(seed), impl="threefry2x32"))
        np.testing.assert_array_equal(jax.random.key_data(seeds.key(seed)), want)
        assert seeds.argument(seed).shape == ()
    for low, high in ((0, 1), (5, 7), (2**32 - 1, 2**31 - 1)):
        want = jax.random.fold_in(jax.random.key(np.uint32(low), impl="threefry2x32"), high)
        found = seeds.key(low + (high << 32))
        np.testing.assert_array_equal(jax.random.key_data(found), jax.random.key_data(want))
    data = {jax.random.key_data(seeds.key(s)).tobytes() for s in (0, 1, 2**32, 2**32 + 1, 2**33)}
    assert len(data) == 5


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, True, "0", None, np.float32(1), 10**400])
def test_other_seeds_are_refused(seed):
    for take in (seeds.check_seed, seeds.argument):
        with pytest.raises(ValueError, match="^seed: got .*, allowed a whole number from 0 to 922"):
            take(seed)
    assert seeds.check_seed(np.int64(3)) == 3 and seeds.check_seed(seeds.MOST) == 2**63 - 1


@pytest.mark.timeout(600)  # several processes, one after another
@pytest.mark.slow  # every key and draw names its kind, in the fast ones
def test_pictures_depend_on_no_setting_of_the_environment(python, monkeypatch):
    """Keys of another kind that jax makes by default, and numbers of twice the width."""
    for name, value in (
        ("JAX_DEFAULT_PRNG_IMPL", "rbg"),
        ("JAX_ENABLE_X64", "1"),
        ("JAX_THREEFRY_PARTITIONABLE", "0"),
    ):
        monkeypatch.setenv(name, value)
    other = python("tests/reliability/drawn_images.py")
    assert other.returncode == 0, other.stderr
    *found, settings = other.stdout.splitlines()
    assert settings == "rbg True"
    assert found == drawn_images.digests()


def _trained(folder, *settings):
    """Weights and log of two steps that the API trains in these settings of jax, and goes on."""
    with contextlib.ExitStack() as around:
        for setting in settings:
            around.enter_context(setting)
        for steps in (1, 2):
            made, batches = runs_to_kill.open_loop(folder, steps)
            state = made.restore(batches) or made.fresh_state()
            state = made.run(state, batches, say=lambda line: None)
            batches.close()
            made.close()
    leaves = jax.tree.leaves((state.params, state.ema, state.opt_state))
    losses = [record["loss"] for record in journal.read_metrics(folder / "metrics.jsonl")]
    return [np.asarray(leaf) for leaf in leaves], losses


def test_training_by_the_api_depends_on_no_setting_of_jax(tmp_path):
    weights, losses = _trained(tmp_path / "a")
    settings = jax.enable_x64(True), jax.default_prng_impl("rbg"), jax.threefry_partitionable(False)
    others, same = _trained(tmp_path / "b", *settings)
    assert losses == same and len(losses) == 2
    for one, other in zip(weights, others, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_the_settings_of_jax_are_fixed_inside_and_come_back():
    before = jax.config.jax_default_prng_impl, jax.config.jax_enable_x64
    with jax.enable_x64(True), jax.default_prng_impl("rbg"), seeds.fixed():
        assert not jax.config.jax_enable_x64
        assert str(jax.random.key_impl(jax.random.key(0))) == "threefry2x32"
        assert jax.numpy.zeros(2).dtype == np.float32
    assert before == (jax.config.jax_default_prng_impl, jax.config.jax_enable_x64)


def test_a_run_of_other_draws_is_refused(tmp_path):
    made, batches = runs_to_kill.open_loop(tmp_path, 1)
    state = made.run(made.fresh_state(), batches, say=lambda line: None)
    read = made.checkpoints.restore(1)["manifest"]
    assert read["random"] == seeds.FACTS
    made.close()
    other = {**seeds.FACTS, "keys": "rbg"}
    folder = tmp_path / "checkpoints" / "1"
    facts = json.loads((folder / "manifest" / "metadata").read_text()) | {"random": other}
    (folder / "manifest" / "metadata").write_text(json.dumps(facts))
    digests.seal(tmp_path, folder)
    made, batches = runs_to_kill.open_loop(tmp_path, 1)
    with pytest.raises(ValueError, match="^checkpoint: got step 1 .*'rbg'.*allowed .*threefry2x32"):
        made.restore(batches)
    batches.close()
    made.close()
    assert isinstance(made, loop.Loop) and int(state.step) == 1
