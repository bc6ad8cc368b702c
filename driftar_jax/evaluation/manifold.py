"""Distances between samples and real data: precision, recall, and the nearest training image.

Everything goes block by block, so memory is bounded whatever the number of samples.
"""

from collections.abc import Iterator

import numpy as np

BLOCK = 256
THUMBNAIL = 32


def precision_recall(
    real: np.ndarray, samples: np.ndarray, *, neighbours: int = 3, block: int = BLOCK
) -> tuple[float, float]:
    """Compute the shares of samples inside the real manifold, and of real data inside the samples'
    one.

    A manifold is the union of balls around its points, each reaching to its `neighbours`-th
    nearest fellow. Both shares depend on the counts: compare at equal ones.

    Args:
      real: `[n, d]` features of real data.
      samples: `[m, d]` features of samples.
      neighbours: k.
      block: rows at a time; changes the memory alone.

    Returns:
      precision, recall, in [0, 1].

    Raises:
      ValueError: a set has no more than `neighbours` points, or widths differ.

    Source: Kynkaanniemi et al., arXiv 1904.06991.
    """
    if real.ndim != 2 or samples.ndim != 2 or real.shape[1] != samples.shape[1]:
        raise ValueError(f"features: got {real.shape} and {samples.shape}, allowed one width")
    fewest = min(len(real), len(samples))
    if fewest <= neighbours:
        raise ValueError(f"num: got {fewest} images, allowed more than {neighbours} (neighbours)")
    # Far from zero, the subtraction of squares below would lose digits.
    middle = np.mean(real, axis=0, dtype=np.float64)
    real, samples = (np.asarray(f, np.float64) - middle[None] for f in (real, samples))
    inside_real = _inside(samples, real, _radii(real, neighbours, block), block)
    inside_made = _inside(real, samples, _radii(samples, neighbours, block), block)
    return float(inside_real.mean()), float(inside_made.mean())


def _radii(points: np.ndarray, neighbours: int, block: int) -> np.ndarray:
    """Squared distance of every point to its k-th neighbour; the point itself comes first."""
    radii = []
    for squared in _squared(points, points, block):
        # In place, and only as far as needed: nobody asks for the order of the others.
        squared.partition(neighbours, axis=1)
        radii.append(squared[:, neighbours].copy())  # a view would keep the whole block
    return np.concatenate(radii)


def _inside(points: np.ndarray, centres: np.ndarray, radii: np.ndarray, block: int) -> np.ndarray:
    return np.concatenate(
        [(d <= radii[None]).any(axis=1) for d in _squared(points, centres, block)]
    )


def _squared(a: np.ndarray, b: np.ndarray, block: int) -> Iterator[np.ndarray]:
    """Squared distances of `block` rows of `a` to all of `b` at a time."""
    norms = np.square(b).sum(axis=1)
    for first in range(0, len(a), block):
        part = a[first : first + block]
        sizes = np.square(part).sum(axis=1)[:, None] + norms[None]
        # `|a|^2 + |b|^2 - 2 a b` in place: one block of distances, and no second one of
        # differences.
        squared = part @ b.T
        squared *= -2.0
        squared += sizes
        sizes *= 1e-13
        # Equal points must be at no distance, or a ball of radius zero would lose its centre.
        squared[squared <= sizes] = 0.0
        yield squared


def thumbnails(images: np.ndarray, most: int = THUMBNAIL) -> np.ndarray:
    """Map uint8 `[n, H, W, C]` -> uint8 of at most `most` pixels a side, means over whole cells."""
    for axis in (1, 2):
        side = images.shape[axis]
        if side > most:
            starts = np.arange(0, side, -(-side // most))
            sums = np.add.reduceat(images, starts, axis=axis, dtype=np.float32)
            cells = np.diff(np.append(starts, side)).astype(np.float32)
            shape = [1] * images.ndim
            shape[axis] = len(cells)
            images = np.round(sums / cells.reshape(shape)).astype(np.uint8)
    return images


def nearest(
    images: np.ndarray, training: np.ndarray, *, block: int = BLOCK
) -> tuple[np.ndarray, np.ndarray]:
    """Find the training image nearest to each image, and how far it is: is it a copy?

    Pixels are compared, not features: a classifier's features are made to forget what tells two
    images of a class apart. Smooth images are near to everything, so compare with held-out ones.

    Args:
      images: uint8 `[n, H, W, C]`.
      training: uint8 `[m, H, W, C]`, m of at least 1.
      block: images at a time; changes the memory alone.

    Returns:
      int64 `[n]` indices, and float64 `[n]` root mean square differences of pixels, where 1 is the
      whole range; of images above 32 pixels a side their thumbnails'.

    Raises:
      ValueError: sizes differ.
    """
    if images.shape[1:] != training.shape[1:] or len(training) == 0:
        raise ValueError(
            f"images: got shape {images.shape[1:]}, allowed that of the training images, "
            f"{training.shape[1:]}, at least one of them"
        )
    indices, distances = [], []
    for first in range(0, len(images), block):
        small = thumbnails(images[first : first + block])
        part = _rows(small)
        best = np.full(len(part), np.inf, np.float32)
        index = np.zeros(len(part), np.int64)
        # Thumbnails are made again for every block of images: all of them at once may not fit in
        # memory.
        for start in range(0, len(training), 16 * block):
            other = _rows(thumbnails(training[start : start + 16 * block]))
            # |a|^2 is the same for all: the order is that of |b|^2 - 2 a b.
            score = np.square(other).sum(axis=1)[None] - 2.0 * (part @ other.T)
            closest = score.argmin(axis=1)
            value = score[np.arange(len(part)), closest]
            index = np.where(value < best, closest + start, index)
            best = np.minimum(value, best)
        # The difference itself, for the winner alone: scores of near images cancel in float32.
        apart = small.astype(np.float64) - thumbnails(training[index])
        distances.append(np.sqrt(np.square(apart / 255.0).mean(axis=(1, 2, 3))))
        indices.append(index)
    return np.concatenate(indices), np.concatenate(distances)


def _rows(images: np.ndarray) -> np.ndarray:
    """uint8 `[n, ...]` -> float32 `[n, d]` around zero."""
    return images.reshape(len(images), -1).astype(np.float32) / 127.5 - 1.0
