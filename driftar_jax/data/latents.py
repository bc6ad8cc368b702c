"""Image sets that were encoded once: moments of an autoencoder, and of the mirror image.

A folder of shards is a prepared TFDS set (ArrayRecord, `tfds.builder_from_directory`) with one file
more, `latents.json`, which says what was encoded with which autoencoder, and another one,
`captions.json`, where the pictures have texts. MAR's own cache, one
`class/picture.npz` per image, is read as it lies.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from driftar_jax.config import wrong
from driftar_jax.data import CONVERTED, LATENTS, listing, npz, tfds_files
from driftar_jax.data.source import MEMORY_LIMIT
from driftar_jax.storage import paths, reasons
from driftar_jax.storage.jsons import read_json, write_json
from driftar_jax.storage.reasons import reason

FACTS = "latents.json"
CAPTIONS = "captions.json"
SET_NAME = "latents"


class LatentSource:
    """`[i] -> {"moments": float32 [2, h, w, 2c], "label": int}`; index 1 is the mirror image.

    Attributes:
      name, split: as they were asked for.
      image_shape: `(h, w, c)` of the latents.
      class_names, num_classes, fingerprint, left_out: as of `ImageSource`.
      vae, vae_fingerprint: folder of the autoencoder, and text that tells it from others; None in
        MAR's cache.
      captions: one text per image, in the set's order; None where the set has none.
    """

    def __init__(self, read: Callable[[int], dict], length: int, **attributes):
        """`read(i)` gives an item. Sets below `source.MEMORY_LIMIT` are read here, once."""
        self._read, self._length = read, length
        self.name: str = attributes["name"]
        self.split: str = attributes["split"]
        self.image_shape: tuple[int, int, int] = attributes["image_shape"]
        self.class_names: tuple[str, ...] = tuple(attributes["class_names"])
        self.num_classes = len(self.class_names)
        self.vae: str | None = attributes.get("vae")
        self.vae_fingerprint: str | None = attributes.get("vae_fingerprint")
        self.captions: list[str] | None = attributes.get("captions")
        self.left_out: str = attributes.get("left_out", "")
        # Not of the folder's name: a set that was moved is the same set.
        self._facts = f"|{self.split}|{length}|{self.vae_fingerprint}"
        self.fingerprint = f"latents{self._facts}|{attributes['digest']}"
        self._arrays: dict[str, np.ndarray] | None = None
        # Sixteen bytes for each number of a latent: mean and spread, of the image and its mirror,
        # float32.
        if length * 16 * int(np.prod(self.image_shape)) < MEMORY_LIMIT:
            self._arrays = self._stacked(range(length))

    def is_of(self, fingerprint: str) -> bool:
        """Say whether a stored fingerprint is of this set; older ones hold the folder's name."""
        if fingerprint in (self.fingerprint, self.name + self._facts):
            return True
        before = isinstance(fingerprint, str) and fingerprint.startswith(LATENTS)
        return before and self.vae is not None and fingerprint.endswith(self._facts)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: int) -> dict:
        if not -self._length <= i < self._length:
            raise IndexError(f"image {i} of {self._length}")
        return self._read(i % self._length)

    @property
    def in_memory(self) -> bool:
        """Say whether all latents are held in memory, not read batch by batch."""
        return self._arrays is not None

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return items at `indices [B]`, stacked; new arrays."""
        if self._arrays is None:
            return self._stacked(indices)
        return {name: array[indices] for name, array in self._arrays.items()}

    def labels(self) -> np.ndarray:
        """Return int32 `[N]` in the set's order."""
        return self.batch(np.arange(len(self)))["label"]

    def _stacked(self, indices) -> dict[str, np.ndarray]:
        items = [self._read(int(i)) for i in indices]
        shapes = {item["moments"].shape for item in items}
        if len(shapes) > 1:
            raise wrong("data.name", self.name, f"latents of one shape, not {sorted(shapes)}")
        labels = np.array([item["label"] for item in items], np.int32)
        return {"moments": np.stack([item["moments"] for item in items]), "label": labels}


def open_latents(name: str, split: str, *, image_size: int | None) -> LatentSource:
    """Open the split of `latents:PATH`.

    Raises:
      ValueError: no such folder or split, an unfinished set, or a grid of another size; one line.
    """
    if name == CONVERTED:
        raise wrong("data.name", name, f"{LATENTS}PATH with PATH written by encode")
    folder = pathlib.Path(paths.local("data.name", name.removeprefix(LATENTS)))
    if not folder.is_dir():
        raise wrong("data.name", name, f"{LATENTS}PATH with PATH a folder written by encode")
    source = (
        _shards(name, folder, split) if (folder / FACTS).is_file() else _npz(name, folder, split)
    )
    side = source.image_shape[0]
    if image_size is not None and (side, side) != (image_size, source.image_shape[1]):
        raise wrong("data.image_size", image_size, f"{side}, the grid of {name}")
    return source


def _shards(name: str, folder: pathlib.Path, split: str) -> LatentSource:
    facts = read_facts(folder)
    if not (folder / "dataset_info.json").is_file():
        raise wrong("data.name", name, "a set that encode finished; run it again to go on")
    if split not in facts["splits"]:
        allowed = f"a set with the split {split!r}; it has {' | '.join(facts['splits']) or 'none'}"
        raise wrong("data.name", name, allowed)
    import tensorflow_datasets as tfds

    try:
        tfds_files.check(folder)
        builder = tfds.builder_from_directory(str(folder))
        records = builder.as_data_source(split)
        count = len(records)
        read_here = ("moments", "mirrored", "label")
        left_out = tfds_files.left_out(folder, builder.info, read_here, (FACTS, CAPTIONS))
    except Exception as error:  # whatever TFDS says of damaged files
        line = reason(error)
        raise wrong("data.name", name, f"a set whose files are whole ({line})") from error
    if count != facts["splits"][split]:
        allowed = f"{facts['splits'][split]} images of {split} as its {FACTS} says, not {count}"
        raise wrong("data.name", name, allowed)

    def read(i: int) -> dict:
        try:
            record = records[i]
            # Both, and the step chooses: which one a position takes is drawn on the device, with
            # the step's key.
            moments = np.stack([record["moments"], record["mirrored"]])
            return {"moments": moments, "label": int(record["label"])}
        # ArrayRecord keeps hashes; whatever it or the decoder says, the file is not as written.
        except Exception as error:
            # TFDS does not say which file it read; the number of the image does.
            size = facts["per_shard"]
            shard = folder / shard_name(split, i // size, -(-count // size))
            line = reason(error)
            raise wrong("data.name", str(shard), f"a shard as it was written ({line})") from error

    height, width, channels = facts["shape"]
    return LatentSource(
        read,
        count,
        name=name,
        split=split,
        image_shape=(height, width, channels // 2),
        class_names=facts["class_names"],
        vae=facts["vae"],
        vae_fingerprint=facts["vae_fingerprint"],
        digest=_digest(json.dumps(facts.get("source"), sort_keys=True)),
        captions=_captions(name, folder, split, count),
        left_out=left_out,
    )


def _captions(name: str, folder: pathlib.Path, split: str, count: int) -> list[str] | None:
    path = folder / CAPTIONS
    if not path.is_file():
        return None
    texts = read_json("data.name", path, "the captions that encode wrote").get(split)
    if not _texts(texts) or len(texts) != count:
        raise wrong("data.name", str(path), f"a caption for each of {count} images of {split}")
    return texts


def _npz(name: str, folder: pathlib.Path, split: str) -> LatentSource:
    """MAR's cache: `moments` and `moments_flip`, channels first, unscaled and unclamped."""
    if split != "train":
        raise wrong("data.split", split, f"'train', which is all that {name} holds")
    listed = listing.of("data.name", name, str(folder), (".npz",))
    files = listed.files

    def read(i: int) -> dict:
        path, label = files[i]
        try:
            pair = np.stack(npz.read(path, ("moments", "moments_flip")))
            whole = pair.ndim == 4 and pair.size and pair.shape[1] % 2 == 0  # means and spreads
            if not whole or pair.dtype.kind != "f":
                raise ValueError(f"moments are {pair.dtype} {pair.shape[1:]}")
            # Beyond float32 as well: it would become infinite on the way.
            if not (np.abs(pair) <= np.finfo(np.float32).max).all():
                raise ValueError("moments that are not finite in float32")
        # A damaged zip can raise nearly anything, and each means the same to a user.
        except Exception as error:
            line = reasons.of_file(path) or reason(error)
            allowed = f"files with moments and moments_flip ({line})"
            raise wrong("data.name", str(path), allowed) from error
        # PyTorch's channels first to ours last.
        return {"moments": np.moveaxis(pair, 1, -1).astype(np.float32), "label": label}

    _, height, width, channels = read(0)["moments"].shape
    return LatentSource(
        read,
        len(files),
        name=name,
        split="train",
        image_shape=(height, width, channels // 2),
        class_names=listed.classes,
        left_out=listed.left_out,
        digest=_digest("\n".join(f"{os.path.relpath(p, folder)}\t{k}" for p, k in files)),
    )


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:16]


def read_facts(folder: pathlib.Path) -> dict:
    """Read `latents.json` of a folder that `encode` began.

    Raises:
      ValueError: it is damaged, or no set can have such facts; one line.
    """
    path = folder / FACTS
    facts = read_json("data.name", path, "the facts that encode wrote")
    shape = facts.get("shape")
    for field, fits in (
        ("shape", _numbers(shape) and len(shape) == 3 and shape[-1] % 2 == 0),
        ("class_names", _texts(facts.get("class_names"))),
        ("splits", isinstance(facts.get("splits"), dict) and _numbers([*facts["splits"].values()])),
        ("per_shard", _numbers([facts.get("per_shard")])),
        ("vae", isinstance(facts.get("vae"), str)),
        ("vae_fingerprint", isinstance(facts.get("vae_fingerprint"), str)),
    ):
        if not fits:
            shown = repr(facts.get(field))[:80]
            raise wrong("data.name", str(path), f"the {field} that encode wrote (it has {shown})")
    return facts


def _numbers(value) -> bool:
    """Whether these are whole numbers of at least 1, none beyond what a set can have."""
    return isinstance(value, list) and all(type(n) is int and 0 < n <= 2**40 for n in value)


def _texts(value) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(n, str) for n in value)


def begin(out: str, facts: dict) -> pathlib.Path:
    """Make the folder of a set, or make sure that it is the same set.

    Args:
      out: new or empty folder, or one that was begun with the same facts.
      facts: `shape (h, w, 2c)`, `class_names`, `splits` (name -> images), `per_shard`, `vae`,
        `vae_fingerprint`, `source`.

    Raises:
      ValueError: it holds something else; OSError: it cannot be written.
    """
    folder = pathlib.Path(paths.local("out", out)).absolute()
    if (folder / FACTS).is_file():
        # Through JSON and back, so that tuples and lists compare equal.
        if (then := read_facts(folder)) != (now := json.loads(json.dumps(facts))):
            field = next(k for k in {**then, **now} if then.get(k) != now.get(k))
            raise wrong("out", out, f"a new folder (this one was begun with another {field})")
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise wrong("out", out, "a new or empty folder, or one that encode began")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FACTS, facts)
    return folder


def write_shards(
    folder: pathlib.Path,
    split: str,
    items: Callable[[range], Iterable[dict]],
    tell: Callable[[str], None] = print,
) -> None:
    """Write the shards of a split that are not there; each appears whole or not at all.

    Args:
      folder: of `begin`.
      split: a key of its facts' `splits`.
      items: images by number to `{"moments", "mirrored": float32 [h, w, 2c], "label"}`, in order.
      tell: takes a line for each shard.
    """
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter

    facts = read_facts(folder)
    features = _features(facts)
    serializer = tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info())
    ranges = _ranges(facts, split)
    for number, numbers in enumerate(ranges):
        path = folder / shard_name(split, number, len(ranges))
        if path.exists():
            continue
        unfinished = path.with_name(f".{path.name}.tmp{os.getpid()}")
        try:
            # Records one by one: training reads them in random order, and a group is decoded as a
            # whole.
            writer = ArrayRecordWriter(str(unfinished), "group_size:1")
            try:
                for item in items(numbers):
                    writer.write(serializer.serialize_example(features.encode_example(item)))
            finally:
                writer.close()
            # Under its own name only once it is whole: what is there need not be looked at again.
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
        tell(f"{path.name}: {len(numbers)} images")


def finish(folder: pathlib.Path, captions: Mapping[str, Sequence[str]] | None = None) -> None:
    """Write what TFDS reads a set by; from here on the set is complete.

    Args:
      folder: of `begin`, all its shards written.
      captions: by split, a text for each image; None: the set has none.
    """
    facts = read_facts(folder)
    if captions is not None:
        write_json(folder / CAPTIONS, {split: list(texts) for split, texts in captions.items()})
    _features(facts).save_config(str(folder))
    splits = []
    for split in facts["splits"]:
        ranges = _ranges(facts, split)
        files = [folder / shard_name(split, i, len(ranges)) for i in range(len(ranges))]
        splits.append(
            {
                "name": split,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "numBytes": str(sum(f.stat().st_size for f in files)),
                "shardLengths": [str(len(r)) for r in ranges],
            }
        )
    info = {"name": SET_NAME, "version": "1.0.0", "fileFormat": "array_record", "splits": splits}
    write_json(folder / "dataset_info.json", info)


def shard_name(split: str, number: int, count: int) -> str:
    """Return the file name of a shard, as TFDS wants it."""
    return f"{SET_NAME}-{split}.array_record-{number:05d}-of-{count:05d}"


def _ranges(facts: dict, split: str) -> Sequence[range]:
    count, size = facts["splits"][split], facts["per_shard"]
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


def _features(facts: dict):
    import tensorflow_datasets as tfds

    moments = tfds.features.Tensor(shape=tuple(facts["shape"]), dtype=np.float32, encoding="bytes")
    label = tfds.features.ClassLabel(names=list(facts["class_names"]))
    return tfds.features.FeaturesDict({"moments": moments, "mirrored": moments, "label": label})
