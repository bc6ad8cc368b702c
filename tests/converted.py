"""Checkpoints as others write them, of random arrays, converted."""

import json

import jax
import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from driftar_jax.conversion import checkpoint, rules


def convert(folder, family, abstract, rule_list, config, **options):
    """Random official arrays of moderate size, converted; `options` are those of `forward`."""
    empty = jax.tree.map(lambda a: np.broadcast_to(np.float32(0), a.shape), abstract)
    names, report = rules.to_official(rules.flatten(empty), rule_list)
    report.check()
    rng = np.random.default_rng(0)
    arrays = {}
    for name, array in names.items():
        fan = np.sqrt(array.shape[-1]) if array.ndim > 1 else 2.0
        arrays[name] = (rng.standard_normal(array.shape) / fan).astype(np.float32)
    official = folder / f"official_{family}"
    official.mkdir()
    save_file(arrays, official / "model.safetensors")
    (official / "config.json").write_text(json.dumps(config))
    out = str(folder / family)
    checkpoint.forward(family, str(official), out, "model", tell=lambda line: None, **options)
    return out


def types_apart(call, folder, *words):
    """How far pictures of `sample --dtype=bfloat16` and `--dtype=float32` are apart.

    Returns:
      Mean, 99th percentile and largest difference in levels of 255, and the spread of the pictures.
    """
    made = {}
    for dtype in ("float32", "bfloat16"):
        out = folder / dtype
        done = call("sample", *words, f"--dtype={dtype}", f"--out={out}", "--layout=folder")
        assert (done.status, done.stderr) == (0, ""), done.stderr
        files = sorted((out / "images").rglob("*.png"))
        made[dtype] = np.stack([np.asarray(Image.open(f)).astype(float) for f in files])
    gap = np.abs(made["float32"] - made["bfloat16"])
    assert gap.max() > 0  # bfloat16 was really used
    return gap.mean(), np.percentile(gap, 99), gap.max(), made["float32"].std()
