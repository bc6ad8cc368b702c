"""Files of every kind that is read, changed by a seeded hand: read, or refused in one line."""

import io
import json
import os
import pathlib
import random
import struct

import mutations
import numpy as np
import pytest
import torch_files
from damage import refused_in_one_line, spoiled, watched
from PIL import Image
from safetensors.numpy import save_file

from driftar_jax.conversion import shards, state_dicts
from driftar_jax.data import captions, images, latents, pipeline, prompts

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning"),
]
SLOW = int(os.environ.get("DRIFTAR_MUTATIONS", 10))
TEXTS = ["red heart, heart", "grinning face", "blue square 8", "face with tears"]
GRID = (2, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mutations")


class Text:
    """`tokenizer.json` and `captions.json` of a run."""

    def __init__(self, folder):
        fitted = captions.fit("set", TEXTS, GRID, 8)
        self.folder, self.spec = folder / "text", fitted.spec
        self.folder.mkdir()
        self.tokenizer = json.dumps(fitted.tokenizer).encode()
        self.captions = json.dumps([TEXTS[:2], TEXTS[2:]]).encode()
        (self.folder / prompts.FILE).write_bytes(self.tokenizer)
        (self.folder / captions.FILE).write_bytes(self.captions)

    def read(self):
        book = captions.read_book(self.folder, self.spec, GRID)
        book.rows(["red heart", ""])
        if len(book.by_class) > 1:
            book.rows(book.drawn(np.array([0, 1, -1]), 0))

    def read_with_library(self):
        prompts.load_tokenizer(self.folder, self.spec.marks).encode("red heart <image> 8*8")


class Latents:
    """A set of latents as `encode` leaves it."""

    def __init__(self, folder):
        facts = {
            **dict(shape=[2, 2, 4], class_names=["a", "b"], splits={"train": 5}, per_shard=3),
            **dict(vae="v", vae_fingerprint="f", source=["s"]),
        }
        moments = np.zeros((2, 2, 4), np.float32)
        item = {"moments": moments, "mirrored": moments, "label": 1}
        self.folder = latents.begin(str(folder / "latents"), facts)
        latents.write_shards(self.folder, "train", lambda n: (item for _ in n), lambda line: None)
        latents.finish(self.folder)

    def read(self):
        source = latents.open_latents(f"latents:{self.folder}", "train", image_size=None)
        for i in range(min(len(source), 9)):
            source[i]


class Prepared:
    """A prepared TFDS set."""

    def __init__(self, folder, data_dir):
        pipeline.load_source("digits8", "test", data_dir=data_dir)
        home = pathlib.Path(data_dir) / "digits8" / "1.0.0"
        self.data_dir = folder / "tfds"
        self.folder = self.data_dir / "digits8" / "1.0.0"
        self.folder.mkdir(parents=True)
        for path in home.iterdir():
            (self.folder / path.name).write_bytes(path.read_bytes())

    def read(self):
        source = pipeline.load_source("digits8", "test[:3]", data_dir=str(self.data_dir))
        [source[i] for i in range(len(source))]


def _spoil_file(path, draw_change, read, count, seed, also):
    """`count` changes of a file, each read or refused in one line that holds one of `also`."""
    whole, watch, draw = path.read_bytes(), mutations.Watch(), random.Random(seed)
    try:
        for _ in range(count):
            changed = draw_change(whole, draw)
            path.write_bytes(changed)

            def use():
                done = []
                with refused_in_one_line(also=also):
                    read()
                    done.append(True)
                return done

            with watched(path.parent):
                watch.case(len(changed), use)
    finally:
        path.write_bytes(whole)
    assert watch.tried == count
    return watch


def counts(fast):
    """The fast number of cases, and the long one."""
    return pytest.mark.parametrize(
        "count", [fast, pytest.param(SLOW * fast, marks=pytest.mark.slow)]
    )


@pytest.fixture(scope="module")
def text(folder):
    return Text(folder)


@pytest.fixture(scope="module")
def latent_set(folder):
    return Latents(folder)


@pytest.fixture(scope="module")
def prepared(folder, data_dir):
    return Prepared(folder, data_dir)


@counts(150)
def test_tokenizers(text, count):
    path, also = text.folder / prompts.FILE, ("tokenizer.json: got", "prompt: got")
    _spoil_file(path, mutations.of_json, text.read, count, 1, also)


@counts(150)
def test_tokenizers_of_the_library(text, count):
    path = text.folder / prompts.FILE
    also = ("tokenizer.json: got",)
    _spoil_file(path, mutations.of_json, text.read_with_library, count, 2, also)


@counts(150)
def test_captions(text, count):
    path, also = text.folder / captions.FILE, ("captions.json: got", "prompt: got")
    _spoil_file(path, mutations.of_json, text.read, count, 3, also)


@pytest.mark.parametrize("name", ["latents.json", "dataset_info.json", "features.json"])
@counts(60)
def test_facts_of_latents(latent_set, name, count):
    path, also = latent_set.folder / name, ("data.name: got",)
    _spoil_file(path, mutations.of_json, latent_set.read, count, 4, also)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@counts(50)
def test_facts_of_prepared_sets(prepared, name, count):
    path, also = (
        prepared.folder / name,
        ("data.name: got", "data.split: got", "data.image_size: got"),
    )
    _spoil_file(path, mutations.of_json, prepared.read, count, 5, also)


ARRAYS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.float16)}


def _change_header(whole, draw):
    """A safetensors file with another header, whose length may be said wrongly."""
    (length,) = struct.unpack("<Q", whole[:8])
    if draw.random() < 0.2:
        return mutations.of_fields(whole, draw, 0, 8 + length)
    header = mutations.of_json(whole[8 : 8 + length].rstrip(), draw)
    said = len(header) if draw.random() < 0.9 else draw.choice((0, 2**40, len(header) + 1))
    return struct.pack("<Q", said) + header + whole[8 + length :]


def _read_all(arrays):
    for array in arrays.values():
        if np.prod(array.shape, dtype=float) <= 2**20:
            np.asarray(array)


@counts(250)
def test_headers_of_safetensors(folder, count):
    path = folder / "a.safetensors"
    save_file(ARRAYS, path)

    def read():
        _read_all(state_dicts.read_state_dict(path, None).arrays)

    _spoil_file(path, _change_header, read, count, 6, ("source: got", "weights: got"))


@counts(150)
def test_indices_of_shards(folder, count):
    home = folder / "shards"
    home.mkdir(exist_ok=True)
    for number, name in enumerate(ARRAYS):
        save_file({name: ARRAYS[name]}, home / f"{number}.safetensors")
    index = {
        "metadata": {"total_size": 30},
        "weight_map": {n: f"{i}.safetensors" for i, n in enumerate(ARRAYS)},
    }
    path = home / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    _spoil_file(
        path, mutations.of_json, lambda: _read_all(shards.Shards(home)), count, 7, ("source: got",)
    )


TREE = {
    "model": {"a.weight": torch_files.tensor("0", ARRAYS["a.weight"])},
    "model_ema": torch_files.Stub(
        "collections", "OrderedDict", [["b", torch_files.tensor("1", np.ones(3, np.float32))]]
    ),
    "args": torch_files.Built(
        "argparse", "Namespace", {"lr": 0.1, "out": torch_files.Stub("pathlib", "PosixPath", "x")}
    ),
    "epoch": 3,
}
HELD = {"0": ARRAYS["a.weight"], "1": np.ones(3, np.float32)}


def _change_structure(whole, draw):
    """The program, the headers of members or the directory, each in turn; not the numbers alone."""
    if whole[:2] != b"PK":
        return mutations.of_bytes(whole, draw)
    program = whole.index(b"\x80\x02")
    directory = whole.index(b"PK\1\2")
    begin, end = draw.choice(((0, program), (program, program + 400), (directory, len(whole))))
    if draw.random() < 0.5:
        return mutations.of_fields(whole, draw, begin, end)
    return whole[:begin] + spoiled(whole[begin:end], mutations.changes(draw)) + whole[end:]


@pytest.mark.parametrize("kind", ["zip", "stream"])
@counts(130)
def test_structure_of_pytorch_files(folder, kind, count):
    path = torch_files.WRITERS[kind](folder / f"{kind}.pth", TREE, HELD)

    def read():
        for weights in ("model", "model_ema"):
            _read_all(state_dicts.read_state_dict(path, weights).arrays)

    _spoil_file(path, _change_structure, read, count, 8, ("source: got", "weights: got"))


def _pictures(kind):
    draw = np.random.default_rng(0)
    for mode, shape in (("RGB", (9, 13, 3)), ("L", (9, 13)), ("RGBA", (9, 13, 4)), ("P", (9, 13))):
        if kind == "JPEG" and mode in ("RGBA", "P"):
            continue
        picture = Image.fromarray(
            draw.integers(0, 256, shape, np.uint8), None if mode != "P" else "L"
        )
        stream = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112], exif[0x010F] = 6, "maker"
        options = {"progressive": True} if kind == "JPEG" and mode == "L" else {}
        picture.convert(mode).save(stream, kind, exif=exif, **options)
        yield stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@counts(210)
def test_pictures(folder, kind, count):
    wholes, draw, watch = list(_pictures(kind)), random.Random(9), mutations.Watch()
    for number in range(count):
        encoded = mutations.of_bytes(wholes[number % len(wholes)], draw)

        def use(encoded=encoded):
            done = []
            with refused_in_one_line(images.BadImage):
                height, width, _ = images.header(io.BytesIO(encoded))
                for size, crop in ((8, True), (8, False), (None, True)):
                    made = images.decode(encoded, channels=3, size=size, center_crop=crop)
                    assert made.shape == ((height, width, 3) if size is None else (8, 8, 3))
                done.append(True)
            return done

        with watched(folder):
            watch.case(len(encoded), use)
    assert watch.tried == count and 0 < watch.read < count
