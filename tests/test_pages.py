"""What the documents say of the program is in the program."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SOURCE = "\n".join(path.read_text() for path in sorted((ROOT / "driftar_jax").rglob("*.py")))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _messages():
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    return re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)


def test_there_are_messages():
    assert len(_messages()) > 15


@pytest.mark.parametrize("message", _messages())
def test_a_message_stands_in_the_source(message):
    # Long messages are broken over several literals.
    joined = re.sub(r'"\s*\n\s*f?"', "", SOURCE)
    assert message in joined


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_configs_of_a_page_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / target).exists(), target
    for config in re.findall(r"(?:configs|launch)/[a-z_0-9/]+\.(?:py|sh|sbatch)", text):
        assert (ROOT / config).exists(), config
    for program in re.findall(r"python -m driftar_jax\.([a-z_]+)", text):
        place = ROOT / "driftar_jax" / program
        assert place.with_suffix(".py").exists() or (place / "__main__.py").exists(), program
