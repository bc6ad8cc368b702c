"""InceptionV3 and its metrics against recorded arrays: every array of the case `inception`."""

import functools
import re
import sys
import zlib

import jax
import numpy as np
import pytest
from cases import channels_first, channels_last, claims, load, uncovered

from driftar_jax.conversion import inception as conversion
from driftar_jax.conversion import rules
from driftar_jax.evaluation import frechet, inception_score, manifold
from driftar_jax.features import inception

CASE = load("inception")
MADE_WITH = CASE.config["constructor"]
named = pytest.mark.parametrize("case", ["inception"])
IMAGES = [part for part in CASE.parts("in.") if part.startswith("image")]
each_image = pytest.mark.parametrize("image", IMAGES, ids=[f"inception-{i}" for i in IMAGES])


def recipe_weights() -> dict[str, np.ndarray]:
    """The state dict that the config's recipe makes."""
    seed = CASE.config["weight_recipe"]["seed"]

    def value(name, shape, dtype):
        if dtype.startswith("int"):
            return np.zeros(shape, dtype)
        draw = np.random.RandomState(zlib.crc32(f"{seed}:{name}".encode()))
        x = draw.standard_normal(shape)
        if name.endswith(".conv.weight"):
            x = x * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith(".bn.weight"):
            x = 1 + 0.1 * x
        elif name.endswith(".running_var"):
            x = np.exp(0.1 * x)
        elif name == "fc.weight":
            x = x / np.sqrt(2048)
        else:
            x = 0.1 * x
        return np.asarray(x, dtype)

    return {name: value(name, shape, dtype) for name, shape, dtype in CASE.config["state_dict"]}


@functools.cache
def converted():
    """Official arrays, the module and its parameters."""
    official = recipe_weights()
    shapes = {name: array.shape for name, array in official.items()}
    module = conversion.module(shapes)
    wanted = rules.shapes_of(inception.abstract(module))
    report = rules.plan(shapes, conversion.RULES, wanted)
    report.check()
    assert {name.rpartition(".")[2] for name in report.dropped} <= {"num_batches_tracked"}
    return official, module, rules.unflatten(rules.to_ours(official, report, wanted))


@functools.cache
def network():
    _, module, _ = converted()
    return jax.jit(lambda params, images: module.apply({"params": params}, images))


@named
def test_every_array_is_covered(case):
    assert uncovered(load(case), sys.modules[__name__]) == []


@named
def test_weights_come_back_bit_by_bit(case):
    official, _, params = converted()
    returned, report = rules.to_official(rules.flatten(params), conversion.RULES)
    assert not report.unused
    assert returned.keys() == {n for n in official if not n.endswith("num_batches_tracked")}
    for name, array in returned.items():
        np.testing.assert_array_equal(array, official[name], err_msg=name)


@each_image
@claims("inception", "in.{image}", "out.{image}.*")
def test_features(image):
    _, _, params = converted()
    pixels = channels_last(CASE[f"in.{image}"])
    resized = inception.resize(pixels.astype(np.float32))
    name = f"out.{image}.resized_corner"
    rows, columns = CASE[name].shape[-2:]
    CASE.close(channels_first(resized[:, :rows, :columns]), name)
    found = network()(params, inception.prepare(pixels))
    assert found.keys() == set(MADE_WITH["features"])
    for feature in MADE_WITH["features"]:
        CASE.close(found[feature], f"out.{image}.{feature}")


@named
@claims("inception", "in.metric.features*", "out.metric.fid", "out.metric.precision_recall")
def test_distance_precision_and_recall(case):
    made, real = CASE["in.metric.features1"], CASE["in.metric.features2"]
    distance = frechet.frechet_distance(frechet.Moments.of(made), frechet.Moments.of(real))
    CASE.close(distance, "out.metric.fid")
    (neighbours,) = _numbers("out.metric.precision_recall", r"neighbourhood (\d+)")
    found = manifold.precision_recall(real, made, neighbours=neighbours)
    CASE.close(np.array(found), "out.metric.precision_recall")


@named
@claims("inception", "in.metric.logits", "out.metric.isc")
def test_inception_score(case):
    (splits,) = _numbers("out.metric.isc", r"over (\d+) consecutive splits")
    CASE.close(
        np.array(inception_score.inception_score(CASE["in.metric.logits"], splits)),
        "out.metric.isc",
    )


def _numbers(name: str, pattern: str) -> list[int]:
    """What the description of an array says of the arguments it was made with."""
    return [int(n) for n in re.search(pattern, CASE.config["arrays"][name]["what"]).groups()]
