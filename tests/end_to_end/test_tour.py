"""The notebook of docs/ runs from top to bottom, and keeps no output of a machine."""

import ast
import json
import pathlib

import pytest
from PIL import Image

TOUR = pathlib.Path(__file__).parents[2] / "docs" / "tour.ipynb"


def _cells():
    return [c for c in json.loads(TOUR.read_text())["cells"] if c["cell_type"] == "code"]


def test_the_notebook_is_clean():
    assert len(_cells()) >= 9
    assert all(not c["outputs"] and c["execution_count"] is None for c in _cells())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_cell_runs_and_shows_something(monkeypatch):
    monkeypatch.chdir(TOUR.parent)
    names, shown = {}, []
    for cell in _cells():
        *before, last = ast.parse("".join(cell["source"])).body
        if not isinstance(last, ast.Expr):
            before.append(last)
        exec(compile(ast.Module(before, []), "cell", "exec"), names)
        if isinstance(last, ast.Expr):  # what a notebook shows
            shown.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names))
    images = [picture for picture in shown if isinstance(picture, Image.Image)]
    assert len(images) == 6
    assert all(len(set(picture.convert("L").getdata())) > 20 for picture in images)
    assert names["ahead"].counts.backbone_calls < names["samples"].counts.backbone_calls
    assert all(rate.endswith("images/s") for rate in shown[-1].values())
