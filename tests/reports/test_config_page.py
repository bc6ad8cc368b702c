"""The page of config fields is written from the fields, and is current."""

import importlib
import pathlib

import pytest

from driftar_jax import config
from driftar_jax.reports import config_page

ROOT = pathlib.Path(__file__).parent.parent.parent
FILES = sorted(p.stem for p in (ROOT / "configs").glob("*.py"))


def test_the_page_is_current():
    """Else: python -m driftar_jax.report --config_page=docs/config.md"""
    assert (ROOT / "docs" / "config.md").read_text() == config_page.text()


def test_every_field_is_explained_in_one_sentence():
    for name, field in config.fields().items():
        assert field.says.endswith(".") and "\n" not in field.says, name
        assert 15 < len(field.says) < 100, name


@pytest.mark.parametrize("file", FILES)
def test_every_field_of_a_config_is_on_the_page(file):
    module, page = importlib.import_module(f"configs.{file}"), config_page.text()
    if not hasattr(module, "get_config") or file == "imagenet256":
        pytest.skip("no config of a run")
    for name in config.flatten(module.get_config("tiny")):
        assert f"| `{name}`" in page


@pytest.mark.slow  # the page is compared in the fast ones
def test_the_command(python, tmp_path):
    done = python("-m", "driftar_jax.report", f"--config_page={tmp_path / 'config.md'}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "config.md").read_text() == config_page.text()
    both = python("-m", "driftar_jax.report", "--config_page=x.md", "--results=results")
    assert both.returncode == 2 and "config_page: got 'x.md', allowed nothing" in both.stderr
    nothing = python("-m", "driftar_jax.report", "--out=x.md")
    assert nothing.returncode == 2 and "results: got nothing, allowed" in nothing.stderr
