"""Random access to labelled uint8 images: what every kind of image set becomes."""

import concurrent.futures
import functools
import os
from collections.abc import Callable, Sequence

import numpy as np

MEMORY_LIMIT = 256 * 2**20  # bytes of decoded pixels that are kept; a batch then costs one gather
READ_THREADS = min(16, 2 * (os.cpu_count() or 1))  # half of them wait for the disk
_CHUNK = 128  # images that one thread takes at a time when many are decoded


class ImageSource:
    """`len()` and `[i] -> {"image": uint8 [H, W, C], "label": int}`; safe to read from threads.

    Attributes:
      name, split: as they were asked for.
      image_shape: `(H, W, C)`.
      class_names: one per label; num_classes: how many.
      fingerprint: text that differs whenever the images, their order or preparation may differ.
      in_memory: every image is decoded already.
      captions: one text per image, in the set's order; None where the set has none.
      sizes: smallest and largest `(height, width)` of the pictures as they lie; None: not known.
      left_out: one line that counts what lies in its folder and is no picture of a class, or "".
    """

    def __init__(
        self,
        read: Callable[[list[int]], list[tuple[np.ndarray, int]]],
        length: int,
        *,
        name: str,
        split: str,
        image_shape: tuple[int, int, int],
        class_names: Sequence[str],
        fingerprint: str,
        captions: Callable[[], list[str] | None] | None = None,
        sizes: Sequence[tuple[int, int]] | None = None,
        left_out: str = "",
    ):
        """`read([i, ...])` gives the decoded images with their labels, `captions()` all texts.

        Sets below `MEMORY_LIMIT` are decoded here, once.

        Raises:
          ValueError: the split holds no image, or a picture of a small set is bad.
        """
        if not length:
            raise ValueError(
                f"data.name: got {name!r} whose split {split!r} is empty, allowed >= 1"
            )
        self.name, self.split = name, split
        self.image_shape = tuple(image_shape)
        self.class_names = tuple(class_names)
        self.num_classes = len(self.class_names)
        self.fingerprint, self.left_out = fingerprint, left_out
        self.sizes = None if sizes is None else (min(sizes), max(sizes))
        self._read, self._length, self._captions = read, length, captions
        self._arrays = None
        if length * int(np.prod(image_shape)) < MEMORY_LIMIT:
            # Decoded once and kept: every batch is then one gather.
            self._arrays = self._decode(range(length))

    @functools.cached_property
    def captions(self) -> list[str] | None:
        """Return a text for every image, None for a set without captions.

        Raises:
          ValueError: some hold zero bytes or half letters; one line.
        """
        # Read when they are asked for: training on classes has no use for them.
        texts = None if self._captions is None else self._captions()
        # Tokenizers, fonts and files end a text there, each in its own way.
        if bad := [i for i, text in enumerate(texts or ()) if not _is_text(text)]:
            raise ValueError(
                f"data.name: got {self.name!r} with zero bytes or half letters in {len(bad)} "
                f"captions (first image {bad[0]}), allowed text"
            )
        return texts

    @property
    def in_memory(self) -> bool:
        """Say whether all images are held in memory, not read batch by batch."""
        return self._arrays is not None

    def check_classes(self) -> None:
        """Refuse a split without an image of some class, where its images are in memory.

        Raises:
          ValueError: the first such class is named.
        """
        if self._arrays is None:
            return
        for label in sorted(set(range(self.num_classes)) - set(self._arrays[1].tolist())):
            raise ValueError(
                f"data.name: got {self.name!r} without an image of class "
                f"{self.class_names[label]!r}, allowed at least one of every class"
            )

    def is_of(self, fingerprint: str) -> bool:
        """Say whether a stored fingerprint is of these images in this order."""
        return fingerprint == self.fingerprint

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: int) -> dict:
        if not -self._length <= i < self._length:
            raise IndexError(f"image {i} of {self._length}")
        image, label = self._one(i % self._length)
        return {"image": image, "label": label}

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return images at `indices [B]`: uint8 `[B, H, W, C]`, int32 `[B]`; new arrays."""
        if self._arrays is None:
            return self._decode(indices)
        images, labels = self._arrays
        return images[indices], labels[indices]

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Do as `gather`, as `{"image", "label"}`."""
        images, labels = self.gather(indices)
        return {"image": images, "label": labels}

    def labels(self) -> np.ndarray:
        """Return int32 `[N]` in the set's order."""
        return self.gather(np.arange(len(self)))[1]

    def _one(self, i: int) -> tuple[np.ndarray, int]:
        if self._arrays is not None:
            images, labels = self._arrays
            # Whoever gets a picture may draw on it; the set must stay as it is.
            return images[i].copy(), int(labels[i])
        return self._checked(i, *self._read([i])[0])

    def _checked(self, i: int, image: np.ndarray, label: int) -> tuple[np.ndarray, int]:
        if image.shape != self.image_shape:
            raise ValueError(
                f"data.image_size: got None, allowed an int >= 1: image {i} of {self.name!r} is "
                f"{image.shape[0]}x{image.shape[1]}, others {self.image_shape[0]}x"
                f"{self.image_shape[1]}"
            )
        if not 0 <= label < self.num_classes:
            raise ValueError(
                f"data.split: got {self.split!r} of {self.name!r}, where image {i} has label "
                f"{label}, allowed labels 0..{self.num_classes - 1}"
            )
        return image, label

    def _decode(self, indices) -> tuple[np.ndarray, np.ndarray]:
        wanted = [int(i) for i in indices]
        images = np.empty((len(wanted), *self.image_shape), np.uint8)
        labels = np.empty(len(wanted), np.int32)

        def fill(start: int) -> None:
            part = wanted[start : start + _CHUNK]
            for k, (i, item) in enumerate(zip(part, self._read(part), strict=True)):
                images[start + k], labels[start + k] = self._checked(i, *item)

        # Small pictures cost more bookkeeping than decoding: threads beyond the cores only wait.
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                # Consumed in order, so that the first bad image is the one that is named.
                for _ in pool.map(fill, range(0, len(wanted), _CHUNK)):
                    pass
            except BaseException:
                # Else the rest of the set would be decoded before anybody sees the error.
                pool.shutdown(cancel_futures=True)
                raise
        return images, labels


def _is_text(text: str) -> bool:
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False
