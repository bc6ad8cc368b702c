"""A host that the package does not know: one file and one line, and every program takes it."""

import json
import sys

import numpy as np
import pytest
import sphere_host

import driftar_jax
from driftar_jax import hosts

CONFIG = """
from configs import nextstep_small, drift_nextstep


def get_config(task="host"):
    c = (nextstep_small if task == "host" else drift_nextstep).get_config("tiny")
    c.host = dict(name="sphere", width=16, depth=2, num_heads=2, mlp_width=20, label_drop=0.1,
                  dtype="float32", remat="none")
    del c.text
    c.data.update(name="digits8", image_size=8, patch_size=4)
    c.mask.tokens_per_image = 0
    c.sample.update(ar_steps=4)
    c.train.update(steps=4, checkpoint_every=4)
    return c
"""


@pytest.fixture(scope="module")
def runs(call, workdirs, tmp_path_factory):
    """Both tasks trained by the public program."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "driftar_jax.hosts.sphere_host", sphere_host)
        patch.setitem(hosts.FILES, "sphere", "sphere_host")
        folder = tmp_path_factory.mktemp("sphere")
        config = folder / "sphere.py"
        config.write_text(CONFIG)
        own, drift = folder / "own", folder / "drift"
        for task, workdir, more in (("host", own, ()), ("drift", drift, (own,))):
            changes = [f"--config.init_from={source}" for source in more]
            done = call("train", f"--config={config}:{task}", f"--workdir={workdir}", *changes)
            assert (done.status, done.stderr) == (0, "")
        yield own, drift


@pytest.mark.slow  # who asks for a host is counted in test_imports
def test_it_is_sampled_and_speculates(call, runs, tmp_path):
    own, drift = (driftar_jax.load(run) for run in runs)
    for generator in (own, drift):
        images = generator.sample([3, 1, 4], seed=0).images
        assert images.shape == (3, 8, 8, 1) and images.std() > 1
        guided = generator.sample([3, 1, 4], seed=0, guidance=2.0, guidance_form="extrapolate")
        # After four steps a scale hardly shows in pixels; the rows of both branches are there.
        assert guided.counts.backbone_rows == 2 * guided.counts.backbone_calls == 8
    plain = drift.sample([3, 1, 4], seed=0)
    exact = drift.sample([3, 1, 4], seed=0, gamma=2, rule="coupled", delta=0.0)
    assert np.abs(exact.images.astype(int) - plain.images).max() <= 1
    out = tmp_path / "out"
    done = call("sample", f"--workdir={runs[1]}", "--num=2", "--gamma=1", f"--out={out}")
    assert (done.status, done.stderr) == (0, "")
    assert json.loads((out / "counts.json").read_text())["gamma"] == 1


@pytest.mark.slow  # test_causal_tasks looks ahead
def test_it_looks_ahead(runs):
    for run in runs:
        generator = driftar_jax.load(run)
        plain = generator.sample([3, 1], seed=0)
        ahead = generator.sample([3, 1], seed=0, lookahead=3, delta=0.0)
        assert np.abs(ahead.images.astype(int) - plain.images).max() <= 1
        assert ahead.counts.backbone_calls <= plain.counts.backbone_calls


@pytest.mark.slow  # takes a judge as well
def test_it_is_evaluated(call, runs, workdirs, tmp_path):
    own, drift = runs
    asked = (f"--workdir={drift}", f"--baseline={own}", f"--judge={workdirs.judge}")
    few = ("--num=64", "--seeds=1", "--batch_sizes=64", f"--out={tmp_path / 'report'}")
    done = call("evaluate", *asked, *few)
    assert (done.status, done.stderr) == (0, "")
    assert "drift" in (tmp_path / "report" / "report.md").read_text()


@pytest.mark.slow  # needs the run
def test_a_wrong_setting_of_its_own_is_one_line(call, runs, tmp_path):
    config = runs[0].parent / "sphere.py"
    done = call(
        "train", f"--config={config}", "--config.host.depth=1", f"--workdir={tmp_path / 'run'}"
    )
    assert done.status == 2 and "host.depth: got 1, allowed" in done.stderr
