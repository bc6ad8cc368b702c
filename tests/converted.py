"""Checkpoints as others write them, of random arrays, converted."""

import json

import jax
import numpy as np
from safetensors.numpy import save_file

from driftar_jax.conversion import checkpoint, rules


def convert(folder, family, abstract, rule_list, config):
    """Random official arrays of moderate size, converted."""
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
    checkpoint.forward(family, str(official), out, "model", tell=lambda line: None)
    return out
