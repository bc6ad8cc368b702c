"""Config files by name and by path, from any folder."""

import sys

import pytest

from driftar_jax import __main__ as programs
from driftar_jax.cli import files


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder to be in; what was imported from `configs` is as before afterwards."""
    kept = {name: module for name, module in sys.modules.items() if name.startswith("configs")}
    for name in kept:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [n for n in sys.modules if n.startswith("configs")]:
        del sys.modules[name]
    sys.modules.update(kept)


@pytest.mark.parametrize("written", ["mar_small", "mar_small.py", "configs/mar_small.py"])
def test_a_config_of_the_package_is_found_from_any_folder(elsewhere, written):
    assert files.load(f"{written}:tiny").data.name == "digits8"


def test_a_sweep_is_found_by_name(elsewhere):
    for written in ("mar_small", "sweeps/mar_small", "configs/sweeps/mar_small.py"):
        found = files.result(f"{written}:tiny", "get_sweep", "sweep")
        assert "reference" in found["arms"]


def test_a_file_of_ones_own_comes_first_and_may_import_ours(elsewhere):
    own = elsewhere / "configs"
    own.mkdir()
    (own / "mine.py").write_text("WIDTH = 24\n")
    (own / "mar_small.py").write_text(
        "from configs import mine, small\n"
        "def get_config(size='tiny'):\n"
        "    c = small.generative('host', size)\n"
        "    c.head = dict(width=mine.WIDTH, depth=1, copies=2)\n"
        "    return c\n"
    )
    assert files.load("configs/mar_small.py:tiny").head.width == 24
    assert files.load("mar_small:tiny").head.width == 16


@pytest.mark.parametrize("written", ["mar_smal:tiny", "configs/mar_smal.py", "/x/mar_smal.py:y"])
def test_a_near_name_is_offered(elsewhere, written):
    near = "did you mean 'mar_small'" if not written.startswith("/") else "allowed FILE.py"
    with pytest.raises(ValueError, match=near):
        files.load(written)


def test_what_only_others_import_is_no_config():
    names = files.names()
    assert {"mar_small", "classifier"} <= set(names)
    assert not {"small", "mar_full"} & set(names)
    sweeps = files.names("sweeps")
    assert {"backbone", "mar_small", "transdiff_small"} <= set(sweeps) and "arms" not in sweeps


def test_every_program_is_listed_with_its_first_sentence(capsys, monkeypatch):
    folder = files.home().parent / "driftar_jax"
    mains = {
        file.stem for file in folder.glob("*.py") if 'if __name__ == "__main__"' in file.read_text()
    }
    rooms = {file.parent.name for file in folder.glob("*/__main__.py")}
    assert mains - {"__main__"} | rooms == set(programs.PROGRAMS)
    monkeypatch.setattr(sys, "argv", ["driftar"])
    programs.main()
    said = capsys.readouterr().out
    for program in programs.PROGRAMS:
        assert f"  {program} " in said and len(programs.about(program)) > 20


def test_a_near_program_is_offered(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["driftar", "evalute"])
    with pytest.raises(SystemExit) as end:
        programs.main()
    assert end.value.code == 2
    assert "did you mean 'evaluate'?" in capsys.readouterr().err
