"""`--target` as a user calls it: mistakes in one line; with the compilers, what they say."""

import importlib.util

import pytest

TPU = importlib.util.find_spec("libtpu") is not None
CUDA = importlib.util.find_spec("jax_cuda13_plugin") is not None
NAMES = [
    pytest.param("tpu:v5e:1x1", marks=pytest.mark.skipif(not TPU, reason="libtpu is absent")),
    pytest.param("gpu:h100:1", marks=pytest.mark.skipif(not CUDA, reason="jax's plugin is absent")),
]
TRAIN = ("train", "--config=configs/mar_small.py:tiny")
BENCHMARK = ("benchmark", "--config=configs/mar_small.py:tiny")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*TRAIN, "--target=tpu:v5e:1x1"), "target: got 'tpu:v5e:1x1', allowed none without --dry"),
        (
            (*TRAIN, "--dry_run", "--devices=2", "--target=tpu:v5e:2x4"),
            "target: got 'tpu:v5e:2x4', allowed none with --devices",
        ),
        ((*BENCHMARK, "--dry_run"), "target: got None, allowed tpu:v5e:1x1 | gpu:h100:1 | ..."),
        ((*BENCHMARK, "--target=gpu:h100:1"), "target: got 'gpu:h100:1', allowed none without"),
        ((*BENCHMARK, "--dry_run", "--target=gpu:h10:1"), "target: got 'gpu:h10:1', allowed gpu:K"),
        (("sample", "--workdir=nowhere"), "out: got nothing, allowed --out=VALUE"),
    ],
)
def test_mistakes_are_one_line(call, words, said):
    done = call(*words)
    assert (done.status, done.stdout, done.compiled) == (2, "", 0)
    assert done.stderr.startswith(f"driftar_jax: {said}")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("words", [TRAIN, BENCHMARK], ids=["train", "benchmark"])
def test_a_chip_says_what_a_program_needs(python, words, name):
    program, *rest = words
    done = python("-m", f"driftar_jax.{program}", *rest, "--dry_run", f"--target={name}")
    assert done.returncode == 0, done.stderr
    for word in (f"compiled for       {name}", "it fits", "code", "collectives", "nothing was run"):
        assert word in done.stdout
