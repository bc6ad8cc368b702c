"""Settings of a request from Python: numbers of any library, and what is none."""

import dataclasses

import numpy as np
import pytest
import tiny

from driftar_jax.sampling import load, settings


@pytest.fixture(scope="module", params=["host", "drift"])
def made(request):
    return load.shapes(tiny.config(request.param), tiny.IMAGES)


def test_numbers_of_numpy_become_pythons_own(made):
    plain = made.settings(guidance=2.0, ar_steps=2)
    other = made.settings(guidance=np.float32(2), ar_steps=np.int64(2))
    assert other == plain and type(other.guidance) is float and type(other.ar_steps) is int
    assert made.settings(guidance=2, ar_steps=None).guidance == 2.0


FIELDS = dataclasses.fields(settings.Settings)
HOSTILE = [float("nan"), float("inf"), -1, 10**400, True, None, "1e3", "", [], b"x", np.array(1.0)]


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_every_field_takes_its_kind_alone(made, field):
    for value in HOSTILE:
        try:
            found = getattr(made.checked(**{field.name: value}), field.name)
        except ValueError as error:
            line = str(error)
            assert ": got " in line and ", allowed " in line and "\n" not in line
        else:
            assert type(found) is field.type and found == found
    with pytest.raises(ValueError, match="^setting: got 'guidanse', allowed "):
        made.checked(guidanse=2.0)


def test_of_several_that_are_not_read_the_first_is_named(made):
    wrong = {"shift": 2.0, "drift_scale": 2.0, "guidance_image": 2.0, "bound": "constant"}
    for first in wrong:
        changes = {first: wrong[first], **wrong}
        with pytest.raises(ValueError, match=f"^{first}: got .* does not read it"):
            made.settings(**changes)
