"""The wheel, in an empty folder far from the checkout."""

import email
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile

import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).parents[2]
KEPT_OUT = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "runs")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the checkout, since a build leaves folders behind."""
    return shutil.copytree(ROOT, tmp_path_factory.mktemp("source") / "driftar", ignore=KEPT_OUT)


@pytest.fixture(scope="module")
def installed(source, tmp_path_factory):
    """A folder with the wheel's content, as `pip` unpacks it."""
    out = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    built = ["wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(out)]
    subprocess.run([*pip, *built], cwd=source, check=True)
    (wheel,) = out.glob("*.whl")
    site = out / "site"
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", f"--target={site}", str(wheel)], check=True
    )
    return site


@pytest.fixture(scope="module")
def use(installed, data_dir, tmp_path_factory):
    """`use("driftar", "train", ...)` runs an installed command in one empty folder: its output."""
    empty = tmp_path_factory.mktemp("empty")
    env = {**os.environ, "PYTHONPATH": str(installed), "TFDS_DATA_DIR": str(data_dir)}

    def run(*words, status=0):
        if words[0] == "driftar":
            words = (sys.executable, str(installed / "bin" / "driftar"), *words[1:])
        done = subprocess.run(words, cwd=empty, env=env, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    run.folder = empty
    return run


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_installed_package_trains_samples_judges_and_loads(use, installed):
    use("driftar", "train", "--config=classifier:tiny", "--workdir=judge")
    use("driftar", "train", "--config=mar_small:tiny", "--workdir=own")
    drift = "--config=configs/drift_mar_small.py:tiny"
    use("driftar", "train", drift, "--workdir=drift", "--config.init_from=own")
    use("driftar", "sample", "--workdir=drift", "--out=pictures", "--num=4")
    assert (use.folder / "pictures" / "grid.png").is_file()
    judged = ("--baseline=own", "--judge=judge", "--out=report", "--num=256", "--batch_sizes=32")
    program = (sys.executable, "-m", "driftar_jax.evaluate", "--workdir=drift")
    use(*program, *judged)
    assert (use.folder / "report" / "report.md").is_file()
    use("driftar", "export", "--workdir=drift", "--out=small")
    code = "import driftar_jax; m = driftar_jax.load('small'); print(driftar_jax.__file__)"
    code += "; print(m.sample(labels=[3, 1], seed=0).images.shape)"
    said = use(sys.executable, "-c", code)
    assert str(installed) in said and "(2, 8, 8, 1)" in said


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_installed_package_learns_edits_of_ones_own(use):
    edits, lines = use.folder / "edits", ["source,text,target"]
    edits.mkdir()
    for i in range(8):
        for name, colour in ((f"{i}.png", (9 * i, 99, 9)), (f"{i}_blue.png", (9 * i, 9, 99))):
            Image.new("RGB", (12, 12), colour).save(edits / name)
        lines.append(f"{i}.png,make it blue,{i}_blue.png")
    (edits / "metadata.csv").write_text("\n".join(lines))
    words = ("--config.data.name=pairs:edits", "--config.data.image_size=12")
    words += ("--config.train.batch_size=4", "--config.train.steps=2")
    use("driftar", "train", "--config=nextstep_small:tiny", "--workdir=edit", *words)
    words = ("--image=edits/0.png", "--prompt=make it blue")
    use("driftar", "sample", "--workdir=edit", "--out=blue", *words)
    with Image.open(next((use.folder / "blue").glob("0*.png"))) as picture:
        assert picture.size == (12, 12)


@pytest.mark.slow
def test_names_of_configs_and_programs_are_offered(use):
    said = use("driftar", "train", "--config=mar_smal:tiny", "--workdir=w", status=2)
    assert "did you mean 'mar_small'?" in said
    said = use("driftar", "ablate", "--sweep=mar_smal:tiny", "--out=w", status=2)
    assert "did you mean 'mar_small'?" in said
    assert "Generate images" in use("driftar")
    assert "did you mean 'sample'?" in use("driftar", "smaple", status=2)


@pytest.mark.slow
def test_what_a_wheel_and_a_source_archive_hold(source, installed, tmp_path):
    assert {"driftar_jax", "bin"} == {
        path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")
    }
    assert (installed / "driftar_jax" / "py.typed").is_file()
    (facts,) = installed.glob("driftar_jax-*.dist-info/METADATA")
    said = email.message_from_string(facts.read_text(encoding="utf-8"))
    assert said["License-Expression"] == "Apache-2.0"
    assert {"cuda", "tpu", "dev"} <= set(said.get_all("Provides-Extra"))
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, check=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    for wanted in ("configs/mar_small.py", "docs/running.md", "tests/conftest.py", "LICENSE"):
        assert wanted in names
    assert not [name for name in names if name.endswith(".pyc")]
