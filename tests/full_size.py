"""The whole way at a released size: synthetic official files, converted, one image sampled.

python tests/full_size.py --folder=/tmp/full_size

Writes random arrays under the official names of MAR base and KL-16 (about 1.9 GB, two copies of the
weights as in the released file), calls the public programs on them and prints the seconds and the
peak memory of each. The image means nothing. Not part of the test command: it takes minutes.
"""

import argparse
import json
import math
import multiprocessing
import os
import pathlib
import subprocess
import sys
import time

import numpy as np

TESTS = pathlib.Path(__file__).parent
sys.path.insert(0, str(TESTS / "conversion"))

import torch_files  # noqa: E402


def write_official(path: pathlib.Path, manifest: str, copies: tuple[str, ...]) -> None:
    """A zip-style `.pth` with normal arrays under the names of a recorded parameter list."""
    recorded = json.loads(
        (TESTS / "parity" / "data" / "manifests" / f"{manifest}.json").read_text()
    )
    rng = np.random.default_rng(0)
    storages, tree = {}, {}
    for copy in copies:
        tree[copy] = {}
        for name, shape, _ in recorded["state_dict"]:
            # About the size of an initialisation, so that activations stay near 1.
            size = 1 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.02
            array = rng.standard_normal(shape, np.float32) * np.float32(size)
            key = str(len(storages))
            storages[key] = array + 1 if "norm" in name and name.endswith("weight") else array
            tree[copy][name] = torch_files.tensor(key, storages[key])
    torch_files.write_zip(path, tree, storages)


def timed(program: str, *flags: str) -> None:
    """Run a program; print its seconds and its largest resident size."""
    start = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-m", f"driftar_jax.{program}", *flags],
        cwd=TESTS.parent,
        stdout=subprocess.PIPE,
        text=True,
    )
    last = child.stdout.read().strip().splitlines()[-1:]
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{program}: exit status {os.waitstatus_to_exitcode(status)}")
    peak = usage.ru_maxrss / 2**20
    print(
        f"{program}: {time.monotonic() - start:.0f} s, peak {peak:.2f} GiB; {last[0]}", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", required=True, help="New folder for files, workdirs, images.")
    parser.add_argument("--ar_steps", default=4, type=int)
    parser.add_argument("--nfe", default=10, type=int)
    asked = parser.parse_args()
    folder = pathlib.Path(asked.folder)
    folder.mkdir(parents=True)
    # In a process of its own: a child's largest resident size counts from its parent's.
    files = (("checkpoint-last.pth", "mar_base", 2), ("kl16.ckpt", "vae_kl16", 1))
    for name, manifest, copies in files:
        asked_for = (folder / name, manifest, ("model", "model_ema")[:copies])
        writer = multiprocessing.get_context("spawn").Process(target=write_official, args=asked_for)
        writer.start()
        writer.join()
        print(f"{name}: {(folder / name).stat().st_size / 2**30:.2f} GiB written", flush=True)
    host, vae = f"{folder}/mar_base", f"{folder}/kl16"
    source = f"--source={folder}/checkpoint-last.pth"
    timed("convert", "--family=mar", source, f"--out={host}")
    timed("convert", "--family=vae-kl16", f"--source={folder}/kl16.ckpt", f"--out={vae}")
    timed(
        "sample",
        f"--workdir={host}",
        f"--vae={vae}",
        f"--out={folder}/images",
        "--num=1",
        "--labels=207",
        f"--ar_steps={asked.ar_steps}",
        f"--nfe={asked.nfe}",
    )


if __name__ == "__main__":
    main()
