"""NextStep-1 at about 100 million parameters: official names in three shards, converted, sampled.

python tests/nextstep_size.py --folder=/tmp/nextstep_size

Writes random bfloat16 arrays under the official names of a scaled-down NextStep-1 and of the
released autoencoder, calls the public programs on them and prints the seconds and the peak memory
of each. The image means nothing. Not part of the test command: it takes minutes.
"""

import argparse
import json
import multiprocessing
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))  # run as a file, in a checkout

import jax
import numpy as np
from full_size import timed, write_official
from safetensors.flax import save_file

from driftar_jax.conversion import nextstep, rules
from driftar_jax.data import captions, prompts
from driftar_jax.hosts.nextstep_stored import abstract_params, modules, unstacked

SHARDS = 3
FIELDS = dict(
    vocab_size=16384,
    token_dim=64,
    width=640,
    depth=14,
    num_heads=10,
    num_kv_heads=2,
    head_dim=64,
    mlp_width=1728,
    norm_eps=1e-5,
    rope_theta=1e6,
    attention_bias=True,
    head_width=512,
    head_depth=8,
)
SAID = {
    "model_type": "nextstep",
    "num_attention_heads": 10,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "latent_patch_size": 2,
    "latent_channels": 16,
}
# Of the released autoencoder.
VAE = {
    "encoder_norm": True,
    "psz": 2,
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
    "deterministic": True,
}


def write_model(folder: pathlib.Path) -> None:
    """Shards, their index, `config.json` and a tokenizer of words."""
    folder.mkdir()
    tokenizer = captions.vocabulary_of(["a red fox in the snow"])
    ids = tokenizer["model"]["vocab"]
    (folder / prompts.FILE).write_text(json.dumps(tokenizer))
    marks = {"boi": "begin_image", "eoi": "end_image", "image_placeholder_id": "placeholder"}
    said = {name: ids[prompts.TOKENS[mark]] for name, mark in marks.items()}
    said["pad_token_id_added"] = ids[prompts.TOKENS["pad"]]
    (folder / "config.json").write_text(json.dumps(SAID | said))
    fields = FIELDS | {"placeholder": said["image_placeholder_id"]}
    abstract = unstacked(abstract_params(*modules(fields)))
    empty = jax.tree.map(lambda a: np.broadcast_to(np.float32(0), a.shape), abstract)
    names, report = rules.to_official(rules.flatten(empty), nextstep.RULES)
    report.check()
    total = sum(array.size for array in names.values())
    rng, shards, part, filled = np.random.default_rng(0), [], {}, 0
    for name, array in names.items():
        size = 1 / np.sqrt(array.shape[-1]) if array.ndim > 1 else 0.02
        made = np.float32(size) * rng.standard_normal(array.shape, np.float32)
        norm = "norm" in name and array.ndim == 1
        part[name] = jax.numpy.asarray(made + 1 if norm else made, jax.numpy.bfloat16)
        filled += array.size
        if filled >= total * (len(shards) + 1) / SHARDS:
            shards.append(part)
            part = {}
    index = {}
    for number, part in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{SHARDS:05d}.safetensors"
        save_file(part, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    print(f"{total / 1e6:.1f} million parameters in {len(shards)} shards", flush=True)


def write_autoencoder(folder: pathlib.Path) -> None:
    """`checkpoint.pt` and its settings."""
    folder.mkdir()
    write_official(folder / "checkpoint.pt", "nextstep_vae_f8ch16", ("model",))
    (folder / "config.json").write_text(json.dumps(VAE))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", required=True, help="New folder for files, workdirs, images.")
    parser.add_argument("--side", default=64, type=int, help="Of the image; 16 pixels a token.")
    parser.add_argument("--nfe", default=8, type=int)
    asked = parser.parse_args()
    folder = pathlib.Path(asked.folder)
    folder.mkdir(parents=True)
    # In processes of their own: a child's largest resident size counts from its parent's.
    for write, name in ((write_model, "official"), (write_autoencoder, "vae")):
        writer = multiprocessing.get_context("spawn").Process(target=write, args=(folder / name,))
        writer.start()
        writer.join()
    host, vae = f"{folder}/nextstep", f"{folder}/f8"
    timed("convert", "--family=nextstep", f"--source={folder}/official", f"--out={host}")
    timed("convert", "--family=vae-f8", f"--source={folder}/vae/checkpoint.pt", f"--out={vae}")
    timed(
        "sample",
        f"--workdir={host}",
        f"--vae={vae}",
        f"--out={folder}/images",
        "--prompt=a red fox",
        f"--height={asked.side}",
        f"--width={asked.side}",
        f"--nfe={asked.nfe}",
    )


if __name__ == "__main__":
    main()
