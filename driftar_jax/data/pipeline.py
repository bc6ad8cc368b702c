"""Image sets by name, and endless batches of them whose position is one number."""

import hashlib
import os
import sys
import threading
import weakref
from typing import Any

import jax
import numpy as np

from driftar_jax.data import (
    FOLDER,
    PAIRS,
    PARQUET,
    WEBDATASET,
    folder,
    is_latents,
    latents,
    pairs,
    parquet,
    prepared,
    webdataset,
)
from driftar_jax.data.source import READ_THREADS, ImageSource
from driftar_jax.storage import paths

_END = 2**62  # positions are endless for every practical purpose
_SEEDS = 2**63
_PIXELS = ("image", "source")  # of a batch; a mirrored edit is one of the mirrored source


def load_source(
    name: str,
    split: str,
    *,
    data_dir: str | os.PathLike | None = None,
    image_size: int | None = None,
    center_crop: bool = True,
) -> ImageSource:
    """Open an image set; nothing is ever downloaded.

    Args:
      name: `digits8`, `fashion28`, `emoji32` (embedded), any TFDS set `name[/config][:version]`
        that lies prepared, `folder:PATH` with `class/picture.png`, `webdataset:PATH` with tar
        files, `parquet:PATH` with tables of Hugging Face, `pairs:PATH` with a table of edits, or
        `latents:PATH` written by `encode` (then a `LatentSource` comes back).
      split: `train`, `test`, or what else the set has (`validation`, `train[:10%]` with TFDS).
      data_dir: where TFDS sets lie; None for `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
      image_size: side of the square images; None keeps the set's own size.
      center_crop: images of another size are cropped to their middle square (`images.crop_to`);
        if False, squeezed whole.

    Raises:
      ValueError: one line that names the field, the value and what is allowed.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"data.name: got {name!r}, allowed the name of a set or folder:PATH")
    if not isinstance(split, str) or not split:
        raise ValueError(f"data.split: got {split!r}, allowed the name of a split such as 'train'")
    if image_size is not None:
        _check_int("data.image_size", image_size, 1, 2**14)
    _check_bool("data.center_crop", center_crop)
    if data_dir is not None and not isinstance(data_dir, (str, os.PathLike)):
        raise ValueError(f"data.data_dir: got {data_dir!r}, allowed a folder or None")
    if paths.is_address(name):
        paths.local("data.name", name)
    if is_latents(name):
        return latents.open_latents(name, split, image_size=image_size)
    if name.startswith(FOLDER):
        return folder.open_folder(name, split, image_size=image_size, center_crop=center_crop)
    for kind, open_set in (
        (WEBDATASET, webdataset.open_webdataset),
        (PARQUET, parquet.open_parquet),
        (PAIRS, pairs.open_pairs),
    ):
        if name.startswith(kind):
            return open_set(name, split, image_size=image_size, center_crop=center_crop)
    return prepared.open_prepared(
        name, split, data_dir=data_dir, image_size=image_size, center_crop=center_crop
    )


def all_images(source: ImageSource) -> tuple[np.ndarray, np.ndarray]:
    """Read every image in the set's order: uint8 `[N, H, W, C]`, int32 `[N]`; new arrays."""
    return source.gather(np.arange(len(source)))


class Batches:
    """Endless iterator of `{"image": uint8 [B/P, H, W, C], "label": int32 [B/P]}`.

    A set of latents gives `"moments": float32 [B/P, 2, h, w, 2c]` in place of the images; with rows
    of text there is `"text": int32 [B/P, T]` as well, and with pairs `"source"`, as `"image"`.

    Global batch `n` covers positions `n B .. (n + 1) B - 1` of an endless sequence, one
    permutation of the set per epoch; epochs follow each other without a gap, so a batch may span
    two. Which image stands at a position and whether it is flipped is a pure function of (seed,
    position): not of the number of processes, of stops, or of the batch size. Of `P` processes,
    process `p` gets rows `p B/P .. (p + 1) B/P - 1` of every batch.
    """

    def __init__(
        self,
        source: ImageSource,
        *,
        batch_size: int,
        seed: int,
        flip: bool = False,
        shuffle: bool = True,
        process_index: int = 0,
        process_count: int = 1,
        prefetch: int = 4,
        text: np.ndarray | None = None,
    ):
        """
        Args:
          source: what to read.
          batch_size: global batch `B`.
          seed: 0 .. 2**63 - 1; decides order and flips.
          flip: mirror each image left to right with probability 1/2.
          shuffle: a new permutation each epoch; False keeps the set's order.
          process_index, process_count: which share of the batch this process takes.
          prefetch: batches read ahead in threads; 0 reads in the caller's thread.
          text: int32 `[len(source), T]`, a row for each image (`captions.rows`); None: no text.

        Raises:
          ValueError: one line that names the field, the value and what is allowed.
        """
        _check_int("train.batch_size", batch_size, 1, len(source))
        _check_int("seed", seed, 0, _SEEDS - 1)
        _check_int("process_count", process_count, 1, _SEEDS)
        _check_int("process_index", process_index, 0, process_count - 1)
        _check_int("data.prefetch", prefetch, 0, 1024)
        _check_bool("data.flip", flip)
        _check_bool("data.shuffle", shuffle)
        if batch_size % process_count:
            raise ValueError(
                f"train.batch_size: got {batch_size}, allowed multiples of process_count "
                f"{process_count}"
            )
        self.source, self.batch_size, self.seed = source, int(batch_size), int(seed)
        self.flip, self.shuffle, self.prefetch = bool(flip), bool(shuffle), int(prefetch)
        self.text = None if text is None else np.ascontiguousarray(text, np.int32)
        self.local_batch_size = self.batch_size // process_count
        self._first_row = process_index * self.local_batch_size
        self._delivered = 0
        self._closed = False
        self._orders: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()
        self._iterator, self._stop = None, None

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._closed:
            raise ValueError("batches: got a call after close(), allowed before it")
        if self._iterator is None:
            self._start()
        batch = next(self._iterator)
        self._delivered += 1
        return batch

    def state(self) -> dict:
        """Return the position and what it belongs to; JSON-able, the same in every process."""
        return {"batch": self._delivered, **self._identity()}

    def restore(self, state: dict) -> None:
        """Go on exactly after the batch that was delivered before `state` was taken.

        Raises:
          ValueError: the state belongs to another set, seed, batch size, order or flip.
        """
        expected = self._identity()
        missing = sorted({"batch", *expected} - set(state))
        if missing:
            raise ValueError(f"data state: got no {missing}, allowed what Batches.state() returned")
        for field, want in expected.items():
            if field == "source" and self.source.is_of(state[field]):
                continue
            if state[field] != want:
                raise ValueError(f"data state: got {field} {state[field]!r}, allowed {want!r}")
        _check_int("data state batch", state["batch"], 0, _END // self.batch_size)
        self._halt()
        self._delivered = int(state["batch"])

    def close(self) -> None:
        """Stop the reading threads. Safe to call twice; `state()` stays readable."""
        self._halt()
        self._closed = True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _identity(self) -> dict:
        # Rows of another vocabulary mean something else; sets without text stay as they were.
        text = {} if self.text is None else {"text": hashlib.sha256(self.text).hexdigest()}
        return {
            **text,
            "source": self.source.fingerprint,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "flip": self.flip,
        }

    def _start(self) -> None:
        import grain

        first, rows = self._delivered, self.local_batch_size
        if self.source.in_memory:
            # One gather is so cheap that more threads would only wait for each other.
            reads = grain.MapDataset.range(first, _END // self.batch_size).map(self._read_batch)
            options = grain.ReadOptions(
                num_threads=min(1, self.prefetch), prefetch_buffer_size=self.prefetch
            )
            ready = reads.to_iter_dataset(options)
        else:
            # Threads share the images of one batch, so the first batch comes soon as well.
            reads = grain.MapDataset.range(first * rows, _END // self.batch_size * rows)
            options = grain.ReadOptions(
                num_threads=READ_THREADS if self.prefetch else 0,
                prefetch_buffer_size=self.prefetch * rows,
            )
            ready = reads.map(self._read_image).to_iter_dataset(options).batch(rows)
        self._iterator = iter(ready)
        # Ends the reading threads also where the batches are dropped without `close`.
        self._stop = weakref.finalize(self, self._iterator.close)

    def _halt(self) -> None:
        if self._stop is not None:
            self._stop()
        self._iterator, self._stop = None, None

    def _read_batch(self, number: int) -> dict[str, np.ndarray]:
        first = int(number) * self.batch_size + self._first_row
        positions = np.arange(first, first + self.local_batch_size)
        indices = self._indices(positions)
        batch = self.source.batch(indices)
        if self.flip:
            mirrored = self._flips(first, self.local_batch_size)
            # `batch` returns new arrays, so that the set itself is not mirrored.
            for image in (batch[name] for name in _PIXELS if name in batch):
                image[mirrored] = image[mirrored, :, ::-1]
        return {**batch, **self._text(indices)}

    def _read_image(self, local: int) -> dict[str, np.ndarray]:
        number, row = divmod(int(local), self.local_batch_size)
        position = number * self.batch_size + self._first_row + row
        index = int(self._indices(np.array([position]))[0])
        item = self.source[index]
        if self.flip and self._flips(position, 1)[0]:
            item |= {name: item[name][:, ::-1] for name in _PIXELS if name in item}
        return {**item, "label": np.int32(item["label"]), **self._text(index)}

    def _text(self, indices) -> dict[str, np.ndarray]:
        return {} if self.text is None else {"text": self.text[indices]}

    def _indices(self, positions: np.ndarray) -> np.ndarray:
        """Which image stands at each of the ascending positions."""
        # Positions never restart: position p is place p mod n of epoch p div n, so that a batch
        # that spans two epochs needs no case of its own.
        epochs, places = np.divmod(positions, len(self.source))
        if not self.shuffle:
            return places
        indices = np.empty_like(places)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            here = epochs == epoch
            indices[here] = self._order(epoch)[places[here]]
        return indices

    def _order(self, epoch: int) -> np.ndarray:
        with self._lock:
            if epoch not in self._orders:
                # A counter-based generator keyed by (seed, epoch): any epoch's order without those
                # before it.
                draw = np.random.Generator(np.random.Philox(key=[self.seed, 2 * epoch]))
                self._orders[epoch] = draw.permutation(len(self.source))
                # Threads that read ahead stand in two epochs at most.
                for old in [e for e in self._orders if e < epoch - 1]:
                    del self._orders[old]
            return self._orders[epoch]

    def _flips(self, first: int, count: int) -> np.ndarray:
        """Bool `[count]` for the positions from `first` on."""
        # Each step of the counter gives four words; one step per position makes them independent
        # of where a batch begins. Odd second keys keep clear of the orders' even ones.
        draw = np.random.Philox(key=[self.seed, 1], counter=[first, 0, 0, 0])
        return draw.random_raw(4 * count)[::4] >> np.uint64(63) == 1


def _check_int(field: str, value, low: int, high: int) -> None:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or not low <= value <= high:
        raise ValueError(f"{field}: got {value!r}, allowed an int from {low} to {high}")


def _check_bool(field: str, value) -> None:
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{field}: got {value!r}, allowed True or False")


def open_data(settings: Any, split: str):
    """Open the image set of a config: `train` or `test` split."""
    source = load_source(
        settings.data.name,
        split,
        data_dir=settings.data.data_dir or None,
        image_size=settings.data.image_size,
        center_crop=settings.data.center_crop,
    )
    tell_left_out(source)
    if split == "train":
        _tell_resized(source)
    return source


def _tell_resized(source) -> None:
    """Say in one line where pictures of one's own become smaller or larger."""
    sizes = set(getattr(source, "sizes", None) or ())
    height, width, _ = source.image_shape
    if sizes - {(height, width)} and jax.process_index() == 0:
        span = " to ".join(f"{h}x{w}" for h, w in sorted(sizes))
        line = f"pictures of {span} are made {height}x{width} (data.image_size)"
        print(f"{source.name}: {line}", file=sys.stderr)


def tell_left_out(source) -> None:
    """Say in one line what a set's folder holds that is not read."""
    if source.left_out and jax.process_index() == 0:
        print(f"{source.name}: left out of {source.split}: {source.left_out}", file=sys.stderr)
