"""Workdirs with anything in their config and manifest: read, or refused in one line."""

import json

import pytest
import tiny
from damage import CHANGES, refused_in_one_line, spoiled, watched
from hypothesis import given, settings
from hypothesis import strategies as st

from driftar_jax import config
from driftar_jax.sampling import load
from driftar_jax.storage import checkpoints, digests, jsons

pytestmark = pytest.mark.timeout(120)
MANIFEST = {
    "image_shape": [4, 6, 1],
    "class_names": ["a", "b", "c"],
    "patch_size": 2,
    "tracked": {"entropy_mean": 0.5, "entropy_square": 0.3},
}
HOST = json.dumps(tiny.config("host").to_dict()).encode()
DRIFT = config.flatten(tiny.config("drift"))
_ALONE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2**40),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["../..", "/etc/passwd", "a.b", "\n", 10**400]),
)
_JSON = st.recursive(
    _ALONE,
    lambda kind: st.one_of(
        st.lists(kind, max_size=4), st.dictionaries(st.text("ab.", max_size=3), kind, max_size=2)
    ),
    max_leaves=3,
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A checkpoint without arrays and without digests: what an attacker writes has none or his."""
    folder = tmp_path_factory.mktemp("run")
    jsons.write_json(folder / "config.json", tiny.config("host").to_dict())
    written = checkpoints.Checkpoints(folder)
    written.save(3, manifest=MANIFEST, position={"batch": 3})
    written.wait()
    written.close()
    (folder / "checkpoints" / "3" / digests.DIGESTS).unlink()
    return folder


@given(changes=CHANGES)
@settings(max_examples=200)
def test_a_spoiled_config_file(workdir, changes):
    path = workdir / "config.json"
    path.write_bytes(spoiled(HOST, changes))
    with watched(workdir), refused_in_one_line(ValueError, also=(": got ",)):
        load.stored_config(workdir)


@given(places=st.lists(st.tuples(st.integers(0, 99), _JSON), min_size=1, max_size=3), top=_JSON)
@settings(max_examples=100)
def test_a_config_of_other_kinds(workdir, places, top):
    names = sorted(DRIFT)
    flat = DRIFT | {names[place % len(names)]: value for place, value in places}
    nested = {}
    for name, value in flat.items():
        section, _, field = name.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[field] = value
    for stored in (nested, top, nested | {"host": top}):
        (workdir / "config.json").write_text(json.dumps(stored))
        with watched(workdir), refused_in_one_line(ValueError, also=(": got ",)):
            load.stored_config(workdir)


def test_a_config_without_end(workdir):
    """Nested without end, or with blocks without end: neither read, nor built."""
    for text in ("[" * 10**5, '{"host":' * 5000 + "1" + "}" * 5000):
        (workdir / "config.json").write_text(text)
        with pytest.raises(ValueError, match="^workdir: got "):
            load.stored_config(workdir)
    endless = tiny.config("host", host__decoder_depth=10**9).to_dict()
    jsons.write_json(workdir / "config.json", endless)
    with pytest.raises(ValueError, match="^host.decoder_depth: got 1000000000, allowed .* to 1000"):
        load.read_weights(workdir)


@given(facts=st.dictionaries(st.sampled_from([*MANIFEST, "text", "vae"]), _JSON))
@settings(max_examples=300)
def test_a_manifest_of_other_kinds(facts):
    for manifest in (facts, MANIFEST | facts):
        with refused_in_one_line(ValueError, also=(": got ",)):
            made = load.image_spec(manifest)
            assert made.num_classes >= 1 and min(made.image_shape) >= 1


@given(name=st.sampled_from(["manifest", "position"]), changes=CHANGES, other=st.none() | _JSON)
@settings(max_examples=100)
def test_a_spoiled_manifest_file(workdir, name, changes, other):
    path = workdir / "checkpoints" / "3" / name / "metadata"
    whole = path.read_bytes()
    path.write_bytes(spoiled(whole, changes) if other is None else json.dumps(other).encode())
    opened = checkpoints.Checkpoints(workdir, create=False)
    try:
        with watched(workdir), refused_in_one_line(ValueError, also=(": got ",)):
            read = opened.restore(3)
            load.image_spec(read["manifest"])
            assert isinstance(read["position"], dict)
    finally:
        path.write_bytes(whole)
        opened.close()
