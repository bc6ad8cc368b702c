"""What a step needs: bytes by device, operations and collectives of a compiled program."""

import dataclasses

import jax
import pytest
import tiny

from driftar_jax.targets.program import count_collectives
from driftar_jax.training import dry_run
from driftar_jax.training.dry_run import GIB, HEADER, count, measure, report

PROGRAM = """
  %p = f32[4,6]{1,0} parameter(0)
  %r = f32[4,6]{1,0} all-reduce(%p), replica_groups={{0,1}}, to_apply=%add
  %s = (f32[3]{0}, bf16[5]{0}) all-reduce(%a, %b), to_apply=%add
  %g = (f32[2,6]{1,0}, f32[8,6]{1,0}) all-gather-start(%q), dimensions={0}
  %h = f32[8,6]{1,0} all-gather-done(%g)
  %t = f32[] collective-permute(%u)
"""


def test_collectives_are_counted_once_with_the_bytes_of_their_results():
    assert count_collectives(PROGRAM) == {
        "all-gather": (1, (12 + 48) * 4 // 2),
        "all-reduce": (2, 24 * 4 + 3 * 4 + 5 * 2),
        "collective-permute": (1, 4),
    }


@pytest.fixture(scope="module")
def settings():
    return tiny.importlib.import_module("configs.classifier").get_config("tiny")


@pytest.fixture(scope="module")
def needs(settings):
    return measure(settings)


def test_bytes_are_those_of_the_state(needs):
    assert needs.params == needs.average == 4 * needs.parameters
    # Two moments and three counters: of Adam, of the schedule.
    assert 2 * needs.params < needs.optimizer <= 2 * needs.params + 16
    assert needs.own == 0 and needs.temporary > 0 and needs.collectives == {}


def test_the_slower_ceiling_decides(needs):
    flops, moved = needs.flops / 1e12, needs.moved / 1e9
    assert needs.step_seconds(1.0, 1e9) == pytest.approx(flops)
    assert needs.step_seconds(1e9, 1.0) == pytest.approx(moved)


def test_micro_batches_cost_what_the_batch_costs(settings, needs, monkeypatch):
    parts = settings.copy_and_resolve_references()
    parts.optim.accumulate = 2
    lowered = measure(parts, compiled=False)
    assert lowered.flops == pytest.approx(needs.flops, rel=0.01)
    assert lowered.temporary is None and lowered.collectives is None


@pytest.mark.slow  # the small presets say the same
def test_the_released_nextstep_needs_no_data_and_every_layer_counts():
    """XLA counts the body of a loop once; 48 layers cost what their weights say."""
    config = tiny.importlib.import_module("configs.nextstep_14b").get_config()
    needs = measure(config, compiled=False)
    assert count(needs.parameters) == "15 B" and count(1_780_000) == "1.78 M"
    layers, positions = 13.2e9, 256 + config.text.length + 7
    # Two operations a weight: forward, twice backward, and forward again under `remat`.
    least = 8 * layers * config.train.batch_size * positions
    assert least < needs.flops < 1.3 * least


@pytest.mark.slow  # two compilations
def test_remat_lowers_what_the_gradient_keeps():
    kept = {}
    for remat in ("none", "dots", "full"):
        settings = tiny.importlib.import_module("configs.mar_small").get_config("tiny")
        settings.host.remat = remat
        kept[remat] = measure(settings, compiled=False).kept
    assert kept["full"] < kept["dots"] < kept["none"]


def test_a_micro_batch_keeps_its_share(settings, needs):
    parts = settings.copy_and_resolve_references()
    parts.optim.accumulate = 2
    few = measure(parts, compiled=False).kept
    assert needs.params < few < needs.kept < 2 * few


def test_rows_and_lines_have_every_figure(settings, needs):
    row = dry_run.row("configs/x.py", settings, needs, 100.0, 1000.0)
    assert row.count("|") == HEADER.splitlines()[0].count("|")
    text = "\n".join(report(settings, needs, 100.0, 1000.0))
    for word in (
        "parameters",
        "optimiser",
        "bank",
        "kept",
        "temporaries",
        "TFLOP",
        "at least",
        "caches",
    ):
        assert word in text
    unknown = report(settings, dataclasses.replace(needs, temporary=None), 0.0, 0.0)
    assert "not known without compiling" in "\n".join(unknown)


def test_nothing_lies_on_a_device_afterwards(settings, needs):
    before = len(jax.live_arrays())
    measure(settings, compiled=False)
    assert len(jax.live_arrays()) <= before


def test_a_mistake_is_one_line(python):
    configs = "--configs=configs/mar_small.py:tiny,nowhere.py"
    done = python("-m", "driftar_jax.scale", configs, "--set=host.width=32")
    said = "driftar_jax: configs: got 'nowhere.py', allowed FILE.py[:SIZE] with an existing file"
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1


@pytest.mark.slow  # that the steps are those of one device is in the fast ones (test_sharding)
@pytest.mark.parametrize("config", ["mar_small", "drift_mar_small"])
def test_fsdp_moves_parameters_and_gradients_and_no_activations(python, config):
    """Each parameter is gathered once and its gradient summed once, whatever the batch."""
    changes = "--set=mesh.data=1,mesh.fsdp=8,train.batch_size=256"
    done = python(
        "-m", "driftar_jax.scale", f"--configs=configs/{config}.py:tiny", "--devices=8", changes
    )
    assert done.returncode == 0, done.stderr[-2000:]
    cells = [cell.strip() for cell in done.stdout.splitlines()[-1].strip("| ").split("|")]
    parameters, moved = 4e6 * float(cells[1].split()[0]) / GIB, float(cells[-1])
    assert 1.5 * parameters < moved < 2.6 * parameters
