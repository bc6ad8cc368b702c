"""Drift-AR on NextStep-1 end to end on the `:tiny` config: trained, sampled by prompt, refused."""

import json
import pathlib
import shutil

import chex
import numpy as np
import pytest
from PIL import Image

import driftar_jax

DRIFT = "--config=configs/drift_nextstep.py:tiny"
SHORT = ("--config.train.steps=2", "--config.train.checkpoint_every=1")


@pytest.fixture(scope="module")
def trained(call, tmp_path_factory):
    folder = tmp_path_factory.mktemp("nextstep") / "run"
    done = call("train", DRIFT, *SHORT, f"--workdir={folder}")
    assert (done.status, done.stderr) == (0, "")
    return folder


def test_a_run_is_sampled_by_prompt(call, trained, tmp_path):
    assert (trained / "tokenizer.json").exists() and (trained / "samples").exists()
    out = tmp_path / "out"
    prompts = ("--prompt=red heart, heart", "--prompt=Monkey face")
    done = call("sample", f"--workdir={trained}", *prompts, "--num=3", f"--out={out}", "--gamma=1")
    assert (done.status, done.stderr) == (0, "")
    facts = json.loads((out / "counts.json").read_text())
    assert facts["prompts"] == ["red heart, heart", "Monkey face", "red heart, heart"]
    assert facts["gamma"] == 1 and facts["per_image"]["backbone_calls"] <= 9
    assert sum((n + 1) * r for n, r in enumerate(facts["speculation"]["accepted_lengths"])) == 27
    assert len(list(out.glob("0*.png"))) == 3 and (out / "prompts.png").exists()
    assert np.asarray(Image.open(out / "grid.png")).std() > 5


@pytest.mark.slow  # test_stops has it of MAR
def test_a_run_that_lost_its_last_checkpoint_ends_in_the_same_bits(call, trained, tmp_path):
    again = pathlib.Path(shutil.copytree(trained, tmp_path / "again"))
    shutil.rmtree(again / "checkpoints" / "2")
    done = call("train", DRIFT, *SHORT, f"--workdir={again}")
    assert (done.status, done.stderr) == (0, "") and "from step 1 on" in done.stdout
    found, want = (driftar_jax.load(folder).params for folder in (again, trained))
    chex.assert_trees_all_equal(found, want)


def test_mistakes_are_one_line(call, trained, tmp_path):
    def refused(*words, program="sample", workdir=trained):
        done = call(program, f"--workdir={workdir}", f"--out={tmp_path / 'out'}", *words)
        assert done.status == 2 and done.stderr.count("\n") == 1
        assert not (tmp_path / "out").exists()
        return done.stderr

    assert "at least one word of the training captions" in refused("--prompt=zyx wvu")
    assert "of 17 tokens, allowed at most 16" in refused("--prompt=" + "heart " * 17)
    assert "labels: got '3', allowed none" in refused("--prompt=heart", "--labels=3")
    assert "height: got 64, allowed none" in refused("--prompt=heart", "--height=64")
    copy = pathlib.Path(shutil.copytree(trained, tmp_path / "copy"))
    (copy / "tokenizer.json").unlink()
    assert "no readable tokenizer.json" in refused("--prompt=heart", workdir=copy)
    done = call("train", DRIFT, "--config.data.name=digits8", f"--workdir={tmp_path / 'w'}")
    assert (
        done.status == 2 and "data.name: got 'digits8', allowed a set with captions" in done.stderr
    )
