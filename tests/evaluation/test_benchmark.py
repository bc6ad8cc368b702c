"""The speed table: what is timed, what stands beside it, and one line for a mistake."""

import json
import types

import pytest

from configs import mar_base
from driftar_jax import model
from driftar_jax.evaluation import benchmark
from driftar_jax.sampling import load
from driftar_jax.sampling.settings import Settings

pytestmark = pytest.mark.timeout(300)


def test_the_controls_of_the_own_head():
    settings, all_can = Settings("own", 8, nfe=50), types.SimpleNamespace(can=lambda settings: True)
    table = benchmark.methods(all_can, settings, controls=True)
    assert [sum(s.head_steps) for _, s in table] == [400, 40, 220, 220, 220, 100]
    assert [s.ar_steps for _, s in table] == [8, 8, 8, 8, 8, 2]
    assert benchmark.methods(all_can, settings, controls=False) == [("own", settings)]
    drift = benchmark.methods(all_can, Settings("drift", 8), controls=True)
    assert [s.ar_steps for _, s in drift] == [8, 2]


def test_a_row_adds_up():
    config = mar_base.get_config("tiny")
    loaded = load.random(config, model.ImageSpec((4, 4, 2), ("a", "b"), 2))
    lines = []
    table = [("own", loaded.settings(guidance=1.0))]
    (row,) = benchmark.measure(loaded, table, batch_sizes=(3,), rounds=2, tell=lines.append)
    record = row.as_json()
    assert len(row.whole.seconds) == 2 and lines == [benchmark.line(record)]
    assert record["head_evaluations"] == 3 * 4 and record["peak_bytes"] > 2**20
    assert 0 < record["seconds_per_image_low"] <= record["seconds_per_image"]


@pytest.mark.slow  # test_converted_runs calls it as well
def test_the_command(python, tmp_path):
    flags = ("-m", "driftar_jax.benchmark", "--config=configs/mar_base.py:tiny")
    refused = python(*flags, "--workdir=x")
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1
    assert "workdir, config: got 'both'" in refused.stderr
    more = ("--random_weights", "--batch_sizes=2", "--rounds=1", f"--out={tmp_path}")
    done = python(*flags, *more)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "benchmark.json").read_text())
    assert report["rows"][0]["batch_size"] == 2
    assert "random: speed only" in (tmp_path / "benchmark.md").read_text()


@pytest.mark.parametrize(
    "flag",
    [
        "--batch_sizes=1,x",
        # A process each, refused in the same place.
        *(
            pytest.param(f, marks=pytest.mark.slow)
            for f in ("--rounds=0", "--nfe_last=9", "--nfe=0")
        ),
    ],
)
def test_bad_flags_are_refused(python, flag):
    made = python(
        "-m",
        "driftar_jax.benchmark",
        "--config=configs/mar_base.py:tiny",
        "--nfe_schedule=linear",
        flag,
    )
    assert made.returncode == 2 and len(made.stderr.splitlines()) == 1
    assert flag.strip("-").partition("=")[0] in made.stderr
