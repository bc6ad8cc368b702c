"""Mean and covariance of features, gathered in a stream, and the Frechet distance between two.

Float64 throughout: the distance is a small difference of large traces.
"""

import dataclasses
import functools
import os
import pathlib
import zipfile

import numpy as np


@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean `[d]` and unbiased covariance `[d, d]` of features, float64.

    `count` says of how many; None where a file does not tell.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int | None

    @classmethod
    def of(cls, features: np.ndarray) -> "Moments":
        """Compute them from features `[n, d]`; raises as `MomentSums.moments`."""
        sums = MomentSums(features.shape[1])
        sums.add(features)
        return sums.moments()

    @functools.cached_property
    def root(self) -> np.ndarray:
        """Return the symmetric square root of the covariance; the real set's serves every
        comparison.
        """
        # Eigenvalues of a covariance may be negative by rounding; their root would be NaN.
        values, vectors = np.linalg.eigh(self.covariance)
        return (vectors * np.sqrt(np.maximum(values, 0.0))[None]) @ vectors.T


class MomentSums:
    """Takes features in any number of parts and remembers `[d, d]` numbers, not the features.

    Parts are merged through their own means (Chan, Golub and LeVeque 1979), so that a mean far
    from zero does not cost digits.
    """

    def __init__(self, width: int):
        self.count = 0
        self._mean = np.zeros(width)
        self._squares = np.zeros((width, width))

    def add(self, features: np.ndarray) -> None:
        """Take features `[n, d]`, any floating type.

        Raises:
          ValueError: they have another width, or are not finite.
        """
        if features.ndim != 2 or features.shape[1] != len(self._mean):
            raise ValueError(
                f"features: got shape {features.shape}, allowed [n, {len(self._mean)}]"
            )
        if len(features) == 0:
            return
        part = np.asarray(features, np.float64)
        if not np.isfinite(part).all():
            raise ValueError("features: got NaN or infinity, allowed finite numbers")
        mean = part.mean(axis=0)
        part = part - mean[None]
        total = self.count + len(part)
        # What two sets' squares about their own means lack: the distance between those means.
        apart = mean - self._mean
        self._squares += part.T @ part
        self._squares += np.outer(apart, apart) * (self.count * len(part) / total)
        self._mean = self._mean + apart * (len(part) / total)
        self.count = total

    def moments(self) -> Moments:
        """Return those of everything taken so far.

        Raises:
          ValueError: n <= d, where the covariance has no full rank and distances mean nothing.
        """
        check_count(self.count, len(self._mean))
        # Unbiased, as published statistics are.
        return Moments(self._mean.copy(), self._squares / (self.count - 1), self.count)


def check_count(count: int, width: int, field: str = "num") -> None:
    """Raise ValueError unless `count` images give a covariance of `width` features full rank."""
    if count <= width:
        raise ValueError(f"{field}: got {count} images, allowed more than {width} (feature width)")


def frechet_distance(a: Moments, b: Moments) -> float:
    """Return `|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))` between two Gaussians.

    Of the two, the root of `b`'s covariance is kept for the next call.

    Raises:
      ValueError: they are of features of different widths.

    Source: Heusel et al., arXiv 1706.08500.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features: got width {len(a.mean)}, allowed {len(b.mean)}")
    # The root of S_a S_b has the trace of the root of this symmetric matrix, which is stable.
    middle = np.linalg.eigvalsh(b.root @ a.covariance @ b.root)
    cross = np.sqrt(np.maximum(middle, 0.0)).sum()
    trace = np.trace(a.covariance) + np.trace(b.covariance)
    return float(np.square(a.mean - b.mean).sum() + trace - 2.0 * cross)


def write(path: str | os.PathLike, moments: Moments, network: str) -> None:
    """Write a `.npz` in ADM's layout (`mu`, `sigma`), with the network's name and the count.

    Raises:
      OSError: it cannot be written; nothing half-written stays.
    """
    path = pathlib.Path(path)
    unfinished = path.with_name(f".{path.name}.tmp{os.getpid()}")
    try:
        with open(unfinished, "wb") as file:
            np.savez(
                file,
                mu=moments.mean,
                sigma=moments.covariance,
                network=np.array(network),
                count=np.array(moments.count or 0),
            )
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def read(path: str | os.PathLike, network: str, width: int) -> Moments:
    """Read the reference statistics of a `.npz` with `mu` and `sigma`, such as ADM publishes.

    Args:
      path: the file; what else it holds is left alone. Nothing in it is run.
      network: name of the network that features are made with. A file that does not name its
        network is believed.
      width: of its features.

    Raises:
      ValueError: no such file, damaged, of another width or network; one line.
    """

    def bad(reason):
        line = " ".join(str(reason).split())[:200] or type(reason).__name__
        return ValueError(f"reference: got {str(path)!r}, allowed a .npz of mu and sigma: {line}")

    try:
        with zipfile.ZipFile(path) as archive:
            held = set(archive.namelist())
            if missing := {"mu.npy", "sigma.npy"} - held:
                raise _Unfit(f"no {min(missing).removesuffix('.npy')}")
            if "network.npy" in held:
                named = str(_member(archive, "network", "U", ()))
                if named != network:
                    raise _Unfit(f"made with network {named!r}, not {network!r}")
            mean = _member(archive, "mu", "f", (width,)).astype(np.float64)
            covariance = _member(archive, "sigma", "f", (width, width)).astype(np.float64)
            count = int(_member(archive, "count", "iu", ())) if "count.npy" in held else 0
    # A damaged zip can raise nearly anything, and each means the same to a user.
    except Exception as error:
        raise bad(error) from error
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise bad("NaN or infinity")
    if not np.allclose(covariance, covariance.T, atol=1e-6 * np.abs(covariance).max()):
        raise bad("sigma is not symmetric")
    return Moments(mean, covariance, count or None)


class _Unfit(Exception):
    """An array that is not what it should be."""


def _member(archive: zipfile.ZipFile, name: str, kinds: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array of the archive; its header is judged before anything is allocated for it."""
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        with archive.open(f"{name}.npy") as file:
            version = np.lib.format.read_magic(file)
            if version not in readers:
                raise _Unfit(f"{name} is of format {version}")
            stored_shape, fortran, dtype = readers[version](file)
            if stored_shape != shape:
                raise _Unfit(f"{name} is of shape {list(stored_shape)}, not {list(shape)}")
            # A type of text may be as wide as the header says; names of networks are short.
            if dtype.kind not in kinds or dtype.itemsize > 1024:
                raise _Unfit(f"{name} is of type {dtype}")
            size = dtype.itemsize * int(np.prod(shape))
            raw = file.read(size)
    except ValueError as error:
        raise _Unfit(f"{name} cannot be read ({error})") from error
    if len(raw) != size:
        raise _Unfit(f"{name} ends early")
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")
