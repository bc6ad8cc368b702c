"""TFDS sets that lie prepared in the data folder, read without tensorflow and without a network.

The embedded sets take the same way: they are prepared offline on first use, then read as any
other.
"""

import contextlib
import difflib
import io
import json
import os
import re
import shutil
import tempfile

from driftar_jax.data import embedded, images, listing, tfds_files, tfrecords
from driftar_jax.data.source import ImageSource
from driftar_jax.storage import paths
from driftar_jax.storage.reasons import reason

_NAME = re.compile(r"(?P<set>\w+)(/(?P<config>[\w.-]+))?(:(?P<version>\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")


def data_folder(data_dir: str | None) -> str:
    """Return `data_dir`, else `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.

    Raises:
      ValueError: an address, or no home folder is known; one line.
    """
    if data_dir or not os.environ.get("TFDS_DATA_DIR"):
        return paths.local("data.data_dir", data_dir or "~/tensorflow_datasets")
    return paths.local("TFDS_DATA_DIR", os.environ["TFDS_DATA_DIR"])


def open_prepared(
    name: str, split: str, *, data_dir: str | None, image_size: int | None, center_crop: bool
) -> ImageSource:
    """Open the split of a TFDS set, `name[/config][:version]`, as an `ImageSource`.

    Raises:
      ValueError: unknown name or split, nothing prepared, another file format, or a set without
        8-bit images and class labels. One line each.
    """
    folder = data_folder(data_dir)
    match = _NAME.fullmatch(name)
    if match is None:
        raise _unknown(name)
    if match["set"] in embedded.NAMES and not match["config"]:
        _prepare_embedded(match["set"], folder)
    full_name, summary = _find(name, match, folder)
    file_format = _format(name, summary, folder)

    import tensorflow_datasets as tfds

    try:
        info = tfds.builder(full_name, data_dir=folder).info
        splits = sorted(info.splits)
    except Exception as error:  # whatever TFDS says of damaged files
        raise _damaged(name, folder, error) from None
    channels = _channels(name, info.features)
    shape = _image_shape(name, info.features, image_size, channels)
    # Decoded by `images.decode`: TFDS hands out grey or CMYK files of an RGB set as they are.
    as_stored = {"image": tfds.decode.SkipDecoding()}
    try:
        if file_format == tfrecords.FORMAT:
            records = tfrecords.Records(info, split, as_stored)
        else:
            records = tfds.data_source(
                full_name, split=split, data_dir=folder, download=False, decoders=as_stored
            )
    except ValueError:
        raise ValueError(f"data.split: got {split!r} for {name!r}, allowed {splits}") from None
    except Exception as error:
        raise _damaged(name, folder, error) from None

    def fetch(indices: list[int]):
        try:
            # Reading in bulk starts threads: worth it for many records, ten times slower for one.
            many = len(indices) > 1
            return records.__getitems__(indices) if many else [records[indices[0]]]
        # ArrayRecord keeps hashes; whatever it or the decoder says, the files are not as written.
        except Exception as error:
            raise _damaged(name, folder, error) from None

    def read(indices: list[int]):
        items = zip(indices, fetch(indices), strict=True)
        return [(decode(i, item), int(item["label"])) for i, item in items]

    def read_captions() -> list[str]:
        try:
            return [item["caption"].decode() for item in fetch(list(range(len(records))))]
        except UnicodeDecodeError as error:
            raise ValueError(
                f"data.name: got {name!r}, allowed captions in UTF-8 ({reason(error)})"
            ) from None

    def decode(i: int, item: dict):
        encoded = bytes(item["image"])
        try:
            return images.decode(
                encoded, channels=channels, size=image_size, center_crop=center_crop
            )
        except images.BadImage as error:
            raise ValueError(
                f"data.name: got {name!r} whose image {i} of split {split!r} is bad: {error}"
            ) from None

    written = isinstance(dict(info.features).get("caption"), tfds.features.Text)
    used = ("image", "label", *(["caption"] if written else []))
    names = info.features["label"].names
    if parts := listing.parts_among(names):
        raise ValueError(
            f"data.name: got {name!r} whose classes {parts[:4]} are parts of a set, allowed classes"
        )
    # What decides the pixels at a position: a run does not resume on other ones.
    fingerprint = f"{info.full_name}|{split}|{len(records)}|{shape}|{center_crop}"
    return ImageSource(
        read,
        len(records),
        name=name,
        split=split,
        image_shape=shape,
        class_names=names,
        fingerprint=fingerprint,
        captions=read_captions if written else None,
        left_out=tfds_files.left_out(info.data_dir, info, used),
    )


def _find(name: str, match: re.Match, folder: str) -> tuple[str, dict]:
    """Full name of the set, with config and version, and its `dataset_info.json`."""
    from etils import epath

    base = epath.Path(folder) / match["set"]
    config = match["config"]
    if config is None and base.exists() and not _versions(base):
        configs = sorted(p.name for p in base.iterdir() if p.is_dir() and _versions(p))
        if len(configs) > 1:
            nearest = [f"{match['set']}/{c}" for c in configs]
            raise ValueError(f"data.name: got {name!r}, allowed one of its configs: {nearest}")
        # A single config needs not be named; several cannot be told apart.
        config = configs[0] if configs else None
    home = base / config if config else base
    versions = _versions(home) if home.exists() else []
    if not versions:
        raise _missing(name, match["set"], folder)
    version = match["version"] or versions[-1]
    if version not in versions:
        raise ValueError(f"data.name: got {name!r}, allowed the versions {versions} in {home}")
    tfds_files.check(home / version)
    try:
        info = json.loads((home / version / "dataset_info.json").read_text())
    except ValueError as error:
        raise _damaged(name, folder, error) from None
    return "/".join(filter(None, (match["set"], config))) + f":{version}", info


def _versions(path) -> list[str]:
    """Complete versions below `path`, oldest first."""
    names = [p.name for p in path.iterdir() if _VERSION.fullmatch(p.name)]
    names = [n for n in names if (path / n / "dataset_info.json").exists()]
    # By numbers: as text, 10.0.0 would stand before 9.0.0.
    return sorted(names, key=lambda n: tuple(map(int, n.split("."))))


def _format(name: str, summary: dict, folder: str) -> str:
    """Format of the files; raises ValueError where it is none that can be read."""
    got = summary.get("fileFormat", tfrecords.FORMAT)
    if got not in ("array_record", tfrecords.FORMAT):
        raise ValueError(
            f"data.name: got {name!r} in file format {str(got)[:40]!r}, allowed 'array_record' or "
            f"'{tfrecords.FORMAT}'; prepare it with (needs tensorflow): {_build(name, folder)}"
        )
    return got


def _channels(name: str, features) -> int:
    has = sorted(features) if hasattr(features, "keys") else [type(features).__name__]
    if not {"image", "label"} <= set(has) or not hasattr(features["label"], "names"):
        raise ValueError(
            f"data.name: got {name!r} with features {has}, allowed sets with an 'image' and a "
            "class 'label'"
        )
    channels = features["image"].shape[-1] or 3
    dtype = features["image"].np_dtype
    if channels not in (1, 3, 4) or dtype not in ("uint8", "uint16"):
        raise ValueError(
            f"data.name: got {name!r} with {channels} channels of {dtype}, allowed 1, 3 or 4 of "
            "uint8 or uint16"
        )
    return min(channels, 3)


def _image_shape(name: str, features, image_size: int | None, channels: int):
    height, width = features["image"].shape[:2]
    if image_size is not None:
        return image_size, image_size, channels
    if height is None or width is None:
        raise ValueError(
            f"data.image_size: got None, allowed an int >= 1: images of {name!r} differ in size"
        )
    return height, width, channels


def _prepare_embedded(name: str, folder: str) -> None:
    """Write an embedded set under `folder` unless it is there; two processes may race.

    Each writes a folder of its own and renames it into place: the rename is atomic, the first
    one wins, and a reader sees a complete set or none.
    """
    from driftar_jax.data import builders  # registers the three names

    version = str(builders.VERSIONS.get(name, builders.VERSION))
    target = os.path.join(folder, name, version)
    if os.path.isdir(target):
        return
    import tensorflow_datasets as tfds

    try:
        os.makedirs(os.path.join(folder, name), exist_ok=True)
        scratch = tempfile.mkdtemp(prefix=f".{name}-incomplete-", dir=folder)
    except OSError as error:
        raise ValueError(
            f"data.data_dir: got {folder!r}, allowed a folder that can be written: {error.strerror}"
        ) from None
    try:
        tfds.disable_progress_bar()
        builder = tfds.builder(name, data_dir=scratch, file_format="array_record")
        # TFDS would print that it downloads, which is not so.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
        os.rename(os.path.join(scratch, name, version), target)
    except OSError:
        if not os.path.isdir(target):
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _known_sets() -> list[str]:
    import tensorflow_datasets as tfds

    return sorted({*tfds.list_builders(with_community_datasets=False), *embedded.NAMES})


def _missing(name: str, set_name: str, folder: str) -> ValueError:
    if set_name not in _known_sets():
        return _unknown(name)
    return ValueError(
        f"data.name: got {name!r}, not prepared under {folder}; prepare it with (needs "
        f"tensorflow): {_build(name, folder)}"
    )


def _damaged(name: str, folder: str, error: Exception) -> ValueError:
    line = reason(error)
    return ValueError(
        f"data.name: got {name!r} whose files under {folder} are damaged or missing, allowed a "
        f"complete set: {line}"
    )


def _build(name: str, folder: str) -> str:
    return f"tfds build {name.split(':')[0]} --file_format=array_record --data_dir={folder}"


def _unknown(name: str) -> ValueError:
    bare = re.split("[/:]", name)[0].lower()
    near = difflib.get_close_matches(bare, _known_sets(), n=3, cutoff=0.6)
    hint = f" (nearest: {', '.join(near)})" if near else ""
    return ValueError(
        f"data.name: got {name!r}, allowed {', '.join(embedded.NAMES)}, folder:PATH or the name "
        f"of a TFDS set{hint}"
    )
