"""Spoiled files of reference statistics and of latents: read, or refused in one line."""

import io

import numpy as np
import pytest
from damage import CHANGES, refused_in_one_line, spoiled, watched
from hypothesis import given, settings
from hypothesis import strategies as st

from driftar_jax.data import latents
from driftar_jax.evaluation import frechet

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("statistics")


def _saved(save, **arrays) -> bytes:
    stream = io.BytesIO()
    save(stream, **arrays)
    return stream.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@given(changes=CHANGES)
@settings(max_examples=150)
def test_spoiled_statistics(folder, save, changes):
    whole = _saved(save, mu=np.arange(3.0), sigma=np.eye(3), network=np.array("classifier"))
    path = folder / "stats.npz"
    path.write_bytes(spoiled(whole, changes))
    with watched(folder), refused_in_one_line(also=("reference: got",)):
        found = frechet.read(path, "classifier", 3)
        assert found.mean.shape == (3,) and np.isfinite(found.covariance).all()


_ARRAYS = st.one_of(
    st.integers(0, 4).map(lambda n: np.zeros(n)),
    st.tuples(st.integers(0, 4), st.integers(0, 4)).map(lambda s: np.ones(s)),
    st.sampled_from([np.nan, np.inf, -1.0]).map(lambda x: np.full((3, 3), x)),
    st.sampled_from(["f2", "f4", "c16", "i8", "U3", "S2", "?", "M8[s]"]).map(
        lambda kind: np.zeros(3, kind)
    ),
    st.just(np.array([{"a": 1}, None, "b"], object)),
)


@given(arrays=st.dictionaries(st.sampled_from(["mu", "sigma", "network", "count", "x"]), _ARRAYS))
@settings(max_examples=150)
def test_arrays_of_any_kind(folder, arrays):
    path = folder / "arrays.npz"
    np.savez(path, **arrays)
    with watched(folder), refused_in_one_line(also=("reference: got",)):
        frechet.read(path, "classifier", 3)


@given(changes=CHANGES)
@settings(max_examples=150)
def test_spoiled_latents(folder, changes):
    """MAR's cache; its first file is read when the set is opened."""
    pair = np.zeros((6, 2, 4), np.float32)
    whole = _saved(np.savez, moments=pair, moments_flip=pair)
    (folder / "cache" / "cat").mkdir(parents=True, exist_ok=True)
    (folder / "cache" / "cat" / "a.npz").write_bytes(spoiled(whole, changes))
    with watched(folder), refused_in_one_line(also=("data.name: got", "/cache/cat/a.npz")):
        latents.open_latents(f"latents:{folder / 'cache'}", "train", image_size=None)[0]
