"""Checkpoints to give away: written, read back from disk and from a cache as a hub lays it out."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import driftar_jax
from driftar_jax.sampling import load
from driftar_jax.storage import checkpoints, hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def released(call, workdirs, tmp_path_factory):
    out = tmp_path_factory.mktemp("released") / "tiny"
    words = (f"--workdir={workdirs.drift}", f"--out={out}", "--format=hub", "--dtype=float32")
    done = call("export", *words)
    assert (done.status, done.stderr) == (0, "")
    return out


@pytest.fixture
def cache(released, tmp_path, monkeypatch):
    """A hub's cache with `me/tiny`, its branch `main` and its tag `v1`; and no network."""
    from huggingface_hub import constants

    home = tmp_path / "models--me--tiny"
    (home / "refs").mkdir(parents=True)
    for name in ("main", "v1"):
        (home / "refs" / name).write_text(COMMIT)
    shutil.copytree(released, home / "snapshots" / COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_a_released_folder_holds_what_it_says_and_no_path_of_this_machine(released, workdirs):
    names = {path.name for path in released.iterdir()}
    texts = {"config.json", "manifest.json", "digests.json", "README.md"}
    assert names == {"model.safetensors", *texts}
    for name in ("config.json", "manifest.json", "README.md"):
        text = (released / name).read_text()
        assert str(pathlib.Path(workdirs.own).parent) not in text and "/home/" not in text
    card = (released / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: driftar_jax\n") and "driftar_jax.load" in card
    params, _, _ = load.read_weights(workdirs.drift)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    with safe_open(released / "model.safetensors", framework="numpy") as file:
        assert len(file.keys()) == len(leaves)
        for keys, leaf in leaves:
            name = ".".join(key.key for key in keys)
            np.testing.assert_array_equal(file.get_tensor(name), np.asarray(leaf))


def test_it_is_sampled_as_the_run_is(released, workdirs):
    ours, theirs = driftar_jax.load(workdirs.drift), driftar_jax.load(released)
    assert theirs.step == ours.step
    np.testing.assert_array_equal(ours.sample([3, 1]).images, theirs.sample([3, 1]).images)


def test_an_address_on_the_hub_is_read_from_the_cache_without_a_network(cache, released):
    for address in ("hf://me/tiny", "hf://me/tiny@v1", f"hf://me/tiny@{COMMIT}"):
        assert pathlib.Path(hub.local(address)).name == COMMIT
    made = driftar_jax.load("hf://me/tiny@v1").sample([2]).images
    np.testing.assert_array_equal(made, driftar_jax.load(released).sample([2]).images)


@pytest.mark.parametrize(
    "address, said",
    [
        ("hf://me", "hf://OWNER/NAME"),
        ("hf://me/tiny@", "hf://OWNER/NAME"),
        ("hf://me/tiny/../x", "hf://OWNER/NAME"),
        ("HF://me/tiny", "hf://OWNER/NAME"),
        (pathlib.Path("hf://me/tiny"), "hf://OWNER/NAME"),
        ("hf://me/empty", "export --format=hub wrote .it has no model.safetensors"),
        ("hf://me/other", "a repository that can be had"),
        ("hf://me/tiny@v9", "a repository that can be had"),
    ],
)
def test_what_cannot_be_had_is_one_line(cache, address, said):
    shutil.copytree(cache / "models--me--tiny", cache / "models--me--empty")
    (cache / "models--me--empty" / "snapshots" / COMMIT / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"workdir: got .*{said}") as caught:
        driftar_jax.load(address)
    assert "\n" not in str(caught.value)


def test_commands_read_it_and_write_nothing_there(call, cache, tmp_path):
    read, written = f"--out={tmp_path / 'a'}", "--out=hf://me/other"
    done = call("sample", "--workdir=hf://me/tiny@v9", "--num=1", read)
    assert done.status == 2 and "allowed a repository that can be had" in done.stderr
    small = f"--out={tmp_path / 'small'}"
    assert call("export", "--workdir=hf://me/tiny@v1", small, "--dtype=float32").status == 0
    assert checkpoints.read_config("hf://me/tiny")["task"] == "drift"
    snapshot = cache / "models--me--tiny" / "snapshots" / COMMIT
    done = call("train", "--config=drift_mar_small:tiny", f"--workdir={snapshot}")
    assert done.status == 2 and "--config.init_from" in done.stderr
    for words in (
        ("sample", "--workdir=hf://me/tiny@v1", "--num=1", written),
        ("export", "--workdir=hf://me/tiny@v1", written),
        ("train", "--config=classifier:tiny", "--workdir=hf://me/other"),
    ):
        done = call(*words)
        assert done.status == 2 and "allowed a folder of this machine" in done.stderr, words


def test_only_data_is_asked_for(released, monkeypatch):
    import huggingface_hub

    asked = {}
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda _, **more: asked.update(more) or str(released),
    )
    hub.local("hf://me/tiny@main")
    assert asked["revision"] == "main"
    assert {pathlib.PurePath(name).suffix for name in asked["allow_patterns"]} == {
        ".safetensors",
        ".json",
        ".md",
        ".npz",
    }


def _cut(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def _other_shape(folder):
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}
    first = sorted(arrays)[0]
    arrays[first] = np.zeros((1, 2, 3), np.float32)
    save_file(arrays, folder / "model.safetensors")


def _one_more(folder):
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}
    save_file({**arrays, "more": np.zeros(2, np.float32)}, folder / "model.safetensors")


def _numbers_of(dtype):
    def change(folder):
        with safe_open(folder / "model.safetensors", framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}
        first = sorted(arrays)[0]
        arrays[first] = arrays[first].astype(dtype)
        save_file(arrays, folder / "model.safetensors")

    return change


def _flip(name):
    def change(folder):
        data = bytearray((folder / name).read_bytes())
        data[-3] ^= 1
        (folder / name).write_bytes(data)

    return change


def _edit(name, field, value):
    def change(folder):
        facts = json.loads((folder / name).read_text())
        *sections, last = field.split(".")
        place = facts
        for section in sections:
            place = place[section]
        place[last] = value
        (folder / name).write_text(json.dumps(facts))

    return change


@pytest.mark.parametrize(
    "change, said",
    [
        (_cut, "the file that export wrote"),
        (_other_shape, "as its config says"),
        (_one_more, "no such array as its config says"),
        (_numbers_of(np.int32), "of I32 in .*, allowed F32 or BF16"),
        (_numbers_of(np.float64), "of F64 in .*, allowed F32 or BF16"),
        (_flip("model.safetensors"), "files that export wrote .a damaged model.safetensors"),
        # Of the same sizes: without digests, another model would be read in silence.
        (_edit("config.json", "prior.sigma_max", 0.9), "export wrote .a damaged config.json"),
        (_flip("README.md"), ""),  # a card may be edited
        (lambda folder: (folder / "digests.json").write_text("{"), "a damaged digests.json"),
        (lambda folder: (folder / "digests.json").write_text("{}"), "no digest of model.safe"),
        (_edit("manifest.json", "class_names", list("klmnopqrst")), "a damaged manifest.json"),
        (_edit("manifest.json", "format", 2), "checkpoint format: got '2', allowed 1"),
        (_edit("manifest.json", "step", "six"), "a finished checkpoint"),
        (_edit("manifest.json", "step", True), "a finished checkpoint"),
        (lambda folder: (folder / "manifest.json").unlink(), "it has no manifest.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "it has no model.safetensors"),
        (
            lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.x"),
            "a Git LFS pointer",
        ),
        (lambda folder: (folder / "manifest.json").write_text("["), "the manifest that export"),
    ],
)
def test_a_damaged_folder_is_one_line(released, tmp_path, change, said):
    shutil.copytree(released, tmp_path / "bad")
    change(tmp_path / "bad")
    if not said:
        assert driftar_jax.load(tmp_path / "bad").step == 6
        return
    with pytest.raises(ValueError, match=said) as caught:
        driftar_jax.load(tmp_path / "bad")
    assert "\n" not in str(caught.value)
