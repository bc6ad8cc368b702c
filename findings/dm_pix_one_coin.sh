#!/usr/bin/env bash
# Question: how many pictures of a batch of 16 does `dm_pix.random_flip_left_right(key, batch)`
# flip?
#
# Guess, written before the run: about half, each by a coin of its own.
#
# Seen (dm-pix 0.4.5, jax 0.10.2): none or all. A batch `[16, H, W, C]` is taken, and one coin is
# thrown for it; `random_brightness`, `random_contrast` and `random_crop` as well draw one number
# for all. The parity of each picture is right over many batches, so an average shows nothing.
#
#     flipped in eight batches of 16: 0 16 0 16 0 16 0 0
#     under vmap with 16 keys: 9 of 16
#     random_brightness, random_contrast: 1 value in a batch of 16
#     random_crop: 1 place in a batch of 16
#
# Why it matters: the functions take batches, so nobody wraps them. All pictures of a step then get
# the same view, which takes away much of what augmentation is for, and batch statistics, or a
# drift field between the pictures of a batch, see a set that is mirrored as a whole. Use `jax.vmap`
# with a key for each picture.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
unset "${!JAX_@}" XLA_FLAGS
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  dm-pix==0.4.5 jax==0.10.2 jaxlib==0.10.2 chex==0.1.92 numpy==2.4.6 scipy==1.17.1 \
  ml_dtypes==0.6.0
cat > "$room/probe.py" <<'PY'
import sys

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np

one = jnp.linspace(0.2, 0.8, 64).reshape(8, 8, 1)
batch = jnp.broadcast_to(one, (16, 8, 8, 1))
keys = jax.random.split(jax.random.key(0), 16)


def flipped(pictures):
    return int((pictures[:, 0, 0, 0] > pictures[:, 0, 1, 0]).sum())


def different(pictures):
    return len(np.unique(np.asarray(pictures).reshape(16, -1), axis=0))


coins = [flipped(dm_pix.random_flip_left_right(jax.random.key(i), batch)) for i in range(8)]
print("flipped in eight batches of 16:", *coins)
alone = flipped(jax.vmap(dm_pix.random_flip_left_right)(keys, batch))
print(f"under vmap with 16 keys: {alone} of 16")
values = {
    different(dm_pix.random_brightness(keys[0], batch, 0.5)),
    different(dm_pix.random_contrast(keys[0], batch, 0.5, 1.5)),
}
print("random_brightness, random_contrast:", *values, "value in a batch of 16")
places = different(dm_pix.random_crop(keys[0], batch, (16, 4, 4, 1)))
print(f"random_crop: {places} place in a batch of 16")
if not set(coins) <= {0, 16} or values != {1} or places != 1:
    sys.exit("changed: a batch no longer shares its random numbers")
if not 0 < alone < 16:
    sys.exit("changed: vmap no longer flips picture by picture")
PY
cd "$room"
JAX_PLATFORMS=cpu "$room/venv/bin/python" -I probe.py
