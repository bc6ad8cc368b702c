"""Reads recorded cases of the official programs, and judges arrays against them.

A case is a folder with `config.json`, `io.npz` and usually `weights.npz`. Nothing about its sizes
is assumed here or in the tests: another recording of the same case must pass unchanged.
"""

import fnmatch
import functools
import json
import os
import pathlib

import numpy as np
import pytest

ROOT = pathlib.Path(os.environ.get("DRIFTAR_PARITY") or pathlib.Path(__file__).parent / "data")


class Case:
    """One recorded case; arrays are read when asked for, and `read` remembers their names."""

    def __init__(self, name: str):
        folder = ROOT / name
        self.name = name
        self.config = json.loads((folder / "config.json").read_text())
        self.read: set[str] = set()
        self._io = np.load(folder / "io.npz")
        weights = folder / "weights.npz"
        self.weights = dict(np.load(weights)) if weights.exists() else {}

    @property
    def names(self) -> list[str]:
        return list(self._io.files)

    def __getitem__(self, name: str) -> np.ndarray:
        self.read.add(name)
        return self._io[name]

    def parts(self, prefix: str, suffix: str = "") -> list[str]:
        """What stands between `prefix` and the next dot, of names that also end in `suffix`."""
        found = [n[len(prefix) :].split(".")[0] for n in self.names if n.startswith(prefix)]
        return [
            p for p in dict.fromkeys(found) if not suffix or f"{prefix}{p}{suffix}" in self.names
        ]

    def claimed(self, patterns: list[str]) -> list[str]:
        """Names that match one of the shell-style patterns."""
        return [n for n in self.names if any(fnmatch.fnmatchcase(n, p) for p in patterns)]

    def close(self, got, name: str, rows=...) -> None:
        """Asserts that `got` is the recorded array `name` (its `rows`) to float32 rounding.

        Integers and masks must be equal; `float32_rounding` bounds the rest, and arrays without
        an entry there must agree to 1e-5 of their own size.
        """
        want = self[name][rows]
        got = np.asarray(got)
        assert got.shape == want.shape, f"{name}: got shape {got.shape}, recorded {want.shape}"
        if want.dtype.kind in "biu" or name.endswith((".mask", ".masks")):
            np.testing.assert_array_equal(got, want, err_msg=name)
            return
        bound = self.config["float32_rounding"].get(name)
        if bound is None:
            np.testing.assert_allclose(got, want, rtol=1e-5, err_msg=name)
            return
        allowed = 20 * bound["max_abs"] + 5e-6 * bound["scale"]
        worst = np.abs(got.astype(np.float64) - want).max() if want.size else 0.0
        assert worst <= allowed, f"{name}: differs by {worst:.3g}, allowed {allowed:.3g}"


@functools.cache
def load(name: str) -> Case:
    """The case of that folder name.

    A folder given through DRIFTAR_PARITY may hold some of the cases; tests of the others skip.
    """
    if (
        not (ROOT / name).is_dir()
        and os.environ.get("DRIFTAR_PARITY")
        and any(ROOT.glob("*/io.npz"))
    ):
        pytest.skip(f"{ROOT} has no case {name!r}", allow_module_level=True)
    return Case(name)


def claims(case: str, *patterns: str):
    """Marks a test as the one that covers these arrays.

    `{param}` stands for a test parameter, in the arrays' names and in the case's.
    """

    def mark(function):
        function.case, function.claims = case, patterns
        return function

    return mark


def uncovered(case: Case, module) -> list[str]:
    """Arrays of a case that no test of the module claims, with the parameters it runs with."""
    patterns = []
    for function in vars(module).values():
        if not hasattr(function, "case"):
            continue
        (mark,) = (m for m in function.pytestmark if m.name == "parametrize")
        name, values = mark.args
        values = [v for v in values if function.case.format(**{name: v}) == case.name]
        patterns += [p.format(**{name: v}) for p in function.claims for v in values]
    return sorted(set(case.names) - set(case.claimed(patterns)))


def channels_last(images: np.ndarray) -> np.ndarray:
    """`[B, C, H, W]` -> `[B, H, W, C]`."""
    return np.moveaxis(images, 1, -1)


def channels_first(images) -> np.ndarray:
    """`[B, H, W, C]` -> `[B, C, H, W]`."""
    return np.moveaxis(np.asarray(images), -1, 1)
