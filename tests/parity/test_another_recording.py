"""The tests of this folder on another recording of the same program: NextStep-1 one layer deeper.

The layer that is put in front adds nothing to what passes it: its projections are zero. So all that
was recorded behind it stands, one layer later, and what it computes itself is known.
"""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from cases import ROOT

FOLDER = ROOT / "nextstep"
TESTS = "tests/parity/test_parity_nextstep.py"
_LAYER = re.compile(r"\blayers\.(\d+)\.")
_NUMBERED = re.compile(r"^(out\.seq\.(?:hidden|attn)|out\.cache\.(?:key|value))(\d+)$")


def _later(name):
    """The name one layer later."""
    name = _LAYER.sub(lambda m: f"layers.{int(m[1]) + 1}.", name)
    return _NUMBERED.sub(lambda m: f"{m[1]}{int(m[2]) + 1}", name)


def _deeper(folder):
    """Write the recording with a layer in front."""
    config = json.loads((FOLDER / "config.json").read_text())
    arrays, weights = (dict(np.load(FOLDER / f"{name}.npz")) for name in ("io", "weights"))
    found = {_later(name): array for name, array in arrays.items()}
    # The input of the first layer is that of the second as well.
    found["out.seq.hidden0"] = found["out.seq.hidden1"]
    length = arrays["out.seq.attn0"].shape[-1]
    even = np.tril(np.ones((length, length))) / np.arange(1, length + 1)[:, None]
    even = even.astype(np.float32)
    found["out.seq.attn0"] = np.broadcast_to(even, arrays["out.seq.attn0"].shape)
    for name in ("out.cache.key0", "out.cache.value0"):
        found[name] = np.zeros_like(arrays[name])
        del found[_later(name)]  # of the first layer alone is recorded
    deeper = {_later(name): array for name, array in weights.items()}
    for name, array in weights.items():
        if name.startswith("layers.0."):
            deeper[name] = np.ones_like(array) if "layernorm" in name else np.zeros_like(array)
    rounding = config["float32_rounding"]
    config["float32_rounding"] = {_later(n): r for n, r in rounding.items()}
    for name in ("out.seq.hidden0", "out.seq.attn0"):
        if name in rounding:
            config["float32_rounding"][name] = rounding[name]
    config["constructor"]["config"]["num_hidden_layers"] += 1
    folder.mkdir(parents=True)
    np.savez(folder / "io.npz", **found)
    np.savez(folder / "weights.npz", **deeper)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_deeper_recording_passes_unchanged(tmp_path, compiled_programs):
    _deeper(tmp_path / "nextstep")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", TESTS],
        capture_output=True,
        text=True,
        cwd=ROOT.parents[2],
        env={**os.environ, "DRIFTAR_PARITY": str(tmp_path)},
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(r"\b\d{2,} passed", done.stdout), done.stdout[-300:]
