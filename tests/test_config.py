"""Fields of configs: whose they are, what an old run may say, and what a host of its own brings."""

import dataclasses
import json
import pathlib
import sys
import types

import ml_collections
import pytest
import tiny

from configs import draft_nextstep, drift_transdiff, mae, mar_small, nextstep_small
from driftar_jax import config, hosts
from driftar_jax.hosts import fields as shared
from driftar_jax.hosts.mar import RATIO_MIN
from driftar_jax.hosts.nextstep_contexts import LOSS_WEIGHTS
from driftar_jax.training import drift_grid, masked, optim

MODELS = pathlib.Path(__file__).parent.parent / "models"
FORMER = {
    "text.loss": LOSS_WEIGHTS[0],
    "mask.ratio_min": RATIO_MIN,
    "drift.guidance_power": drift_grid.SCALE_POWER,
    "drift.guidance_none": drift_grid.UNGUIDED,
    "mae.mask_share": masked.MaskedTask.mask_share,
    "mae.label_weight": masked.MaskedTask.label_weight,
    "optim.b1": optim.B1,
}
OWNERS = {
    "text.loss": nextstep_small,
    "mask.ratio_min": mar_small,
    "drift.guidance_power": drift_transdiff,
    "drift.guidance_none": drift_transdiff,
    "mae.mask_share": mae,
    "mae.label_weight": mae,
    "optim.b1": mar_small,
}


def with_field(settings, name, value):
    """Plain data of a config with one more field."""
    plain = settings.to_dict()
    section, _, field = name.partition(".")
    plain[section][field] = value
    return plain


def test_former_fields_are_the_constants_of_the_code():
    table = config.fields()
    assert {n: f.before for n, f in table.items() if f.former} == FORMER


@pytest.mark.parametrize("name", FORMER)
def test_an_old_config_with_a_constant_passes_and_its_run_resumes(name):
    now = OWNERS[name].get_config("tiny")
    old = with_field(now, name, FORMER[name])
    config.check_same_run(now, old)
    config.check_same_run(ml_collections.ConfigDict(old), now.to_dict())
    config.check_stored(with_field(now, name, 0.123))
    with pytest.raises(ValueError, match=f"^{name}: got {FORMER[name]}, allowed 0.123"):
        config.check_same_run(now, with_field(now, name, 0.123))
    if name not in ("drift.guidance_power", "drift.guidance_none"):  # these need a network as well
        config.check(ml_collections.ConfigDict(old))
    with pytest.raises(ValueError, match=f"^{name}: got 0.123, allowed {FORMER[name]:g}"):
        config.check(ml_collections.ConfigDict(with_field(now, name, 0.123)))


@pytest.mark.parametrize("path", sorted(MODELS.glob("*/config.json")), ids=lambda p: p.parent.name)
def test_shipped_configs_are_such_as_a_run_can_have_had(path):
    stored = json.loads(path.read_text())
    if stored["task"] in config.TASKS:
        config.check_stored(stored)
        config.check_same_run(ml_collections.ConfigDict(stored), stored)


def test_what_a_resumed_run_may_change():
    now = tiny.config("drift")
    for name, value in (("train.keep", 9), ("mesh.data", 1), ("sample.gamma", 3)):
        config.check_same_run(now, with_field(now, name, value))
    with pytest.raises(ValueError, match="^train.steps: got"):
        config.check_same_run(now, with_field(now, "train.steps", 99))
    older = now.to_dict()
    del older["drift"]["entropy_adaln"], older["host"]["remat"], older["drift"]["guidance_max"]
    config.check_same_run(now, older)


def test_noise_on_contexts_is_for_tokens_that_follow_one_another():
    config.check(nextstep_small.get_config("tiny"))
    noisy = nextstep_small.get_config("tiny")
    noisy.host.context_noise = -0.1
    with pytest.raises(ValueError, match="^host.context_noise: got -0.1, allowed a number from 0$"):
        config.check(noisy)
    older = noisy.to_dict()
    del older["host"]["context_noise"]
    config.check_same_run(nextstep_small.get_config("tiny"), older)
    with pytest.raises(ValueError, match="^config field: got 'host.context_noise', allowed"):
        config.check(
            ml_collections.ConfigDict(
                with_field(mar_small.get_config("tiny"), "host.context_noise", 0.1)
            )
        )


def test_task_draft_is_for_hosts_with_drafts():
    config.check(draft_nextstep.get_config("tiny"))
    settings = drift_transdiff.get_config("tiny")
    settings.task = "draft"
    with pytest.raises(ValueError) as error:
        config.check(settings)
    line = "mar | nextstep for task draft: these have drafts so far"
    assert str(error.value) == f"host.name: got 'transdiff', allowed {line}"


def test_a_host_of_ones_own_needs_no_other_file(monkeypatch):
    """Its fields, tasks and rules are met by the same check, with the same form of message."""

    def check(flat, tokens):
        shared.check_in_turn(flat, tokens)

    radius = config.real(0, 9, "Radius of the sphere.", open_low=True)
    own = types.SimpleNamespace(
        fields={**shared.TOKENS, "host.radius": radius}, tasks=("host",), check=check
    )
    monkeypatch.setitem(sys.modules, "driftar_jax.hosts.sphere", types.SimpleNamespace(FAMILY=own))
    monkeypatch.setitem(hosts.FILES, "sphere", "sphere")
    settings = mar_small.get_config("tiny")
    wanted = {n.partition(".")[2] for n in own.fields if n.startswith("host.")}
    kept = {n: v for n, v in settings.host.items() if n in wanted | {"name"}}
    settings.host = ml_collections.ConfigDict(kept | {"name": "sphere"})
    del settings.mask["law"], settings.sample["spacing"]
    del settings.sample["nfe_schedule"], settings.sample["nfe_last"]
    settings.sample.ar_steps = 4
    with pytest.raises(ValueError, match="^host.radius: got None, allowed a number above 0 to 9"):
        config.check(settings)
    settings.host.radius = 2.0
    config.check(settings)
    settings.sample.ar_steps = 3
    with pytest.raises(ValueError, match=r"^sample.ar_steps: got 3, allowed 4 \(one per token\)"):
        config.check(settings)
    settings.task = "drift"
    with pytest.raises(ValueError, match="^host.name: got 'sphere', allowed mar"):
        config.check(settings)


def test_fields_are_plain_facts():
    for name, field in config.fields().items():
        assert dataclasses.is_dataclass(field), name
        assert set(field.tasks) <= set(config.TASKS)


def test_a_message_repeats_no_more_of_a_value_than_a_line_holds():
    line = str(config.wrong("prompt", "a\n" * 10**5, "a prompt"))
    assert line.startswith("prompt: got 'a\\na") and line.endswith("a prompt")
    assert "(300002 characters)" in line and len(line) < 500 and "\n" not in line
