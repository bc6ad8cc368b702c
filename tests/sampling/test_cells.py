"""Every kind of checkpoint with every request and setting: it works, or is refused in one line."""

import dataclasses

import numpy as np
import pytest
from recorded import cases

from driftar_jax.evaluation import benchmark
from driftar_jax.sampling.conditions import Request
from driftar_jax.sampling.settings import Settings, read_by

KINDS = ("mar_own", "mar_drift", "transdiff_own", "mrar_own", "transdiff_drift")
KINDS += ("nextstep_own", "nextstep_drift")
# For each setting a value that no config above has.
OTHER = {
    "method": "mean",
    "ar_steps": 2,
    "nfe": 7,
    "guidance": 1.5,
    "guidance_schedule": "constant",
    "temperature": 0.7,
    "spacing": "even",
    "nfe_schedule": "cosine",
    "nfe_last": 3,
    "guidance_form": "extrapolate",
    "drift_scale": 0.5,
    "gamma": 1,
    "rule": "coupled",
    "delta": 0.25,
    "stop": 0.1,
    "guidance_image": 1.5,
    "shift": 3.0,
    "corrected": True,
    "normalise": True,
    "lookahead": 3,
    "bound": "constant",
    "accelerator": "lazymar",
    "order": "halton",
    "guidance_interval": "0.5,1",
    "draft_steps": 3,
    "draft_prefill": 0.3,
    "draft_tau": 7.0,
}


def test_every_setting_is_in_the_table():
    assert OTHER.keys() == {field.name for field in dataclasses.fields(Settings)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_setting_is_read_or_refused(kind):
    generator = cases.loaded(kind)
    base = generator.settings()
    for name, value in OTHER.items():
        if value == getattr(base, name):
            continue
        if name in read_by(generator.model):
            assert getattr(generator.settings(**{name: value}), name) == value
            continue
        with pytest.raises(ValueError, match=f"^{name}: got ") as error:
            generator.sample([0], **{name: value})
        assert "does not read it" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "request_of"),
    [
        ("height", dict(size=(8, 8))),
        ("image", dict(sources=[np.zeros((4, 4, 3), np.uint8)])),
        ("positive", dict(positive="red")),
        ("negative", dict(negative="blue")),
    ],
)
def test_what_prompts_alone_read_is_refused(kind, name, request_of):
    with pytest.raises(ValueError, match=f"^{name}: got .*allowed none") as error:
        cases.loaded(kind).sample([0], **request_of)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_controls_that_a_host_cannot_do_are_left_out(kind):
    """Each row of the benchmark can be sampled, and some control is left where there is one."""
    generator = cases.loaded(kind)
    rows = benchmark.methods(generator, generator.checked(), controls=True)
    assert rows[0][0] == generator.settings().method
    for _, settings in rows:
        settings.check(generator.model)
    assert len(rows) > 1 or not kind.startswith("mar_")


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_are_those_that_the_host_has(kind):
    generator = cases.loaded(kind)
    condition = generator.reader.trial(generator.model, generator.settings(), 2)
    index = np.arange(2, dtype=np.int32)
    args = generator.model, generator.settings(), generator.params, condition, index
    pieces = benchmark._pieces(*args)
    assert set(pieces) == {"whole", "backbone", "head"} if "mar_" in kind else {"whole"}


def test_classes_by_name_and_a_near_one():
    generator = cases.loaded("mar_own")
    want = generator.conditions([0, 2, 2], 0)
    np.testing.assert_array_equal(generator.conditions(["a", "c", 2], 0), want)
    with pytest.raises(ValueError, match="^labels: got 'aa'.*did you mean 'a'"):
        generator.conditions(["aa"], 0)


def test_nothing_more_is_refused_of_nobody():
    for kind in KINDS:
        generator = cases.loaded(kind)
        assert generator.sized(Request()).model == generator.model
