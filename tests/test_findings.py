"""The scripts in findings/ are well-formed; none of them is run here."""

import pathlib
import re
import subprocess

import pytest

FOLDER = pathlib.Path(__file__).parent.parent / "findings"
SCRIPTS = sorted(FOLDER.glob("*.sh"))


def test_the_table_names_every_script_and_no_other():
    named = re.findall(r"^\| `([a-z0-9_]+)` \|", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert named == [script.stem for script in SCRIPTS]
    assert len(named) >= 8


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_says_what_it_asks_and_pins_what_it_runs(script):
    text = script.read_text()
    for part in ("Question: ", "Guess, written before the run: ", "Seen (", "Why it matters: "):
        assert f"\n# {part}" in text, part
    assert "\nset -euo pipefail\n" in text and "trap 'rm -rf" in text
    assert 'sys.exit("changed: ' in text or 'sys.exit(f"changed: ' in text
    installs = re.findall(r"pip\" install ((?:.*\\\n)*.*)", text)
    words = " ".join(installs).replace("\\\n", " ").split()
    packages = [word for word in words if not word.startswith("-")]
    assert packages and all("==" in word for word in packages)
    assert "driftar" not in text
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", script], check=True)
