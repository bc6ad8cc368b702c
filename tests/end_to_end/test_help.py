"""What a newcomer types first, and nearly right names."""

import pathlib
import re

import pytest
from conftest import PROGRAMS

from driftar_jax import config
from driftar_jax.storage import checkpoints

PACKAGE = pathlib.Path(config.__file__).parent


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_shows_every_flag_and_ends_with_status_0(call, program):
    done = call(program, "--help")
    assert (done.status, done.stderr) == (0, "")
    file = PACKAGE / f"{program}.py"
    file = file if file.exists() else PACKAGE / program / "__main__.py"
    text = file.read_text(encoding="utf-8")
    own = re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", text)
    assert own and done.stdout.split("\n")[0] in text.split("\n")[0]
    for name in own:
        assert f"  --{name}" in done.stdout, name
    assert max(map(len, done.stdout.splitlines())) <= 110
    if "config" in own:
        for name, field in config.fields().items():
            assert field.former or name.rpartition(".")[2] in done.stdout
        assert "mar_small" in done.stdout


def test_help_of_a_narrow_terminal(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "12")
    assert call("export", "--help").status == 0


@pytest.mark.parametrize(
    "program, word, near",
    [
        ("sample", "--promt=a", "prompt"),
        ("sample", "--guidence=2", "guidance"),
        ("train", "--work_dir=w", "workdir"),
        ("evaluate", "--imges=f", "images"),
    ],
)
def test_the_nearest_flag_of_all_rooms_is_offered(call, program, word, near):
    done = call(program, word)
    assert done.status == 2 and f"did you mean '{near}'?" in done.stderr


def test_the_nearest_workdir_is_offered(tmp_path):
    for name in ("drift_digits", "own"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"did you mean '.*/drift_digits'\?"):
        checkpoints.read_config(tmp_path / "drfit_digits")
    with pytest.raises(ValueError, match=r"config.json\)$"):
        checkpoints.read_config(tmp_path / "something")
    with pytest.raises(ValueError, match=r"config.json\)$"):
        checkpoints.read_config(tmp_path / "no" / "such")
