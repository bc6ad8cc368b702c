"""NextStep-1 trained on edits at its smallest size: from a table of pairs to edited pictures."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import driftar_jax
from driftar_jax.evaluation import judges

TINY = ("--config=configs/nextstep_small.py:tiny", "--config.train.steps=2")
TINY += ("--config.train.batch_size=4", "--config.data.image_size=12", "--config.train.keep=2")
TINY += ("--config.train.checkpoint_every=1",)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    lines = []
    for i in range(10):
        Image.new("RGB", (16, 12), (20 * i, 200, 10)).save(folder / f"{i}.png")
        Image.new("RGB", (12, 12), (20 * i, 10, 200)).save(folder / f"{i}_blue.png")
        text = "make it blue" if i % 2 else "turn <image> to blue"
        lines.append({"source": f"{i}.png", "text": text, "target": f"{i}_blue.png"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture(scope="module")
def trained(call, pairs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("edits") / "run"
    done = call("train", *TINY, f"--config.data.name=pairs:{pairs}", f"--workdir={folder}")
    assert done.status == 0 and "pictures of 12x12 to 12x16 are made 12x12" in done.stderr
    return folder


def test_a_run_on_pairs_edits_a_picture(call, pairs, trained, tmp_path):
    images = (f"--image={pairs / '0.png'}", f"--image={pairs / '9.png'}")
    words = ("--prompt=make it blue", "--prompt=to blue <image>")
    # Words and picture each have a branch of their own, as in converted checkpoints.
    words += ("--guidance=2", "--guidance_image=1.5", f"--out={tmp_path / 'out'}")
    done = call("sample", f"--workdir={trained}", *images, *words)
    assert (done.status, done.stderr) == (0, "")
    assert len(list((tmp_path / "out").glob("0*.png"))) == 2
    counts = json.loads((tmp_path / "out" / "counts.json").read_text())["per_image"]
    assert counts["backbone_rows"] == 3 * counts["backbone_calls"]


@pytest.mark.slow
def test_a_stopped_run_ends_in_the_same_bits(call, pairs, trained, tmp_path):
    words = (*TINY, f"--config.data.name=pairs:{pairs}", f"--workdir={tmp_path / 'run'}")
    assert call("train", *words, "--config.train.steps=1").status == 0
    done = call("train", *words)
    assert done.status == 0 and "from step 1 on" in done.stdout
    # Held-out edits lie beside the checkpoint, and are drawn where nothing is asked for.
    model = driftar_jax.load(trained)
    book = model.reader.book
    assert book.by_class[0] and book.sources.shape == (len(book.by_class[0]), 12, 12, 3)
    assert model.sample([0, 0]).images.shape == (2, 12, 12, 3)
    found, want = (driftar_jax.load(folder).params for folder in (tmp_path / "run", trained))
    jax.tree.map(np.testing.assert_array_equal, found, want)


def test_mistakes_are_one_line(call, pairs, trained, tmp_path):
    def refused(program, *words):
        done = call(program, *words)
        assert done.status == 2 and done.stderr.count("\n") == 1
        return done.stderr

    def drawn(*words):
        return refused("sample", f"--workdir={trained}", f"--out={tmp_path / 'out'}", *words)

    assert "image: got None, allowed a source picture" in drawn("--prompt=make it red")
    image = f"--image={pairs / '1.png'}"
    assert "allowed <image> once" in drawn(image, "--prompt=<image> make it <image>")
    assert "at least one word of the training captions" in drawn(image, "--prompt=<image>")
    assert "negative: got 'blue', allowed none" in drawn(image, "--prompt=blue", "--negative=blue")
    assert "guidance_image: got 2.0" in drawn(image, "--prompt=blue", "--guidance_image=2")
    words = f"--workdir={tmp_path / 'w'}", f"--config.data.name=pairs:{pairs}"
    done = call("train", "--config=configs/mar_small.py:tiny", *words)
    # After the line that says how the pictures become of one size.
    line = done.stderr.splitlines()[-1]
    assert done.status == 2 and "allowed a set without source pictures" in line
    with pytest.raises(ValueError, match="baseline: got .*, allowed a run without source pict"):
        judges.open_subject(str(trained), "host", "baseline")
    (pairs / "metadata.jsonl").rename(pairs / "metadata.csv")
    said = refused("train", *TINY, *words)
    assert "lines with source, text and target" in said and not (tmp_path / "w").exists()


@pytest.mark.slow
def test_drift_ar_learns_edits_and_is_exported(call, pairs, trained, tmp_path):
    table = pairs / "metadata.csv"
    if table.exists():
        table.rename(pairs / "metadata.jsonl")
    drift = ("--config=configs/drift_nextstep.py:tiny", *TINY[1:])
    words = (f"--config.data.name=pairs:{pairs}", f"--config.init_from={trained}")
    words += ("--config.train.held_out_every=2", f"--workdir={tmp_path / 'drift'}")
    assert call("train", *drift, *words).status == 0
    assert (tmp_path / "drift" / "held_out.jsonl").exists()
    small = tmp_path / "small"
    assert (
        call(
            "export", f"--workdir={tmp_path / 'drift'}", f"--out={small}", "--dtype=float32"
        ).status
        == 0
    )
    source = np.asarray(Image.open(pairs / "3.png"))
    ask = {"sources": [source], "seed": 1}
    runs = [driftar_jax.load(folder) for folder in (tmp_path / "drift", small)]
    images = [run.sample(["make it blue"], **ask).images for run in runs]
    np.testing.assert_array_equal(*images)
    drafted = runs[0].sample(["make it blue"], gamma=2, rule="gaussian", **ask)
    assert drafted.images.shape == (1, 12, 12, 3)
