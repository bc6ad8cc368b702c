r"""The autoencoder whose latents hosts train on: 64-pixel pictures to 8x8 tokens of 16 numbers.

python -m driftar_jax.train --config=configs/autoencoder.py:emoji64 --workdir=runs/vae_emoji64
"""

import ml_collections

from configs import small

SIZES = ("emoji64", "emoji32", "tiny")


def get_config(size: str = "emoji64") -> ml_collections.ConfigDict:
    """Everything a run needs; `size` is the word after the colon."""
    if size not in SIZES:
        raise ValueError(f"config size: got {size!r}, allowed {' | '.join(SIZES)}")
    c = small.base("autoencoder", size)
    c.data.patch_size = 1
    # Squares of 4x4 pixels become channels first, then one level halves the size: tokens of 8x8.
    c.autoencoder = dict(
        channels=32,
        multipliers="1,2",
        blocks=1,
        latent_channels=16,
        fold=4,
        shortcut=True,
        kl=1e-3,
        perceptual=0.0,  # weight of the distance in the maps of `features_from`
        features_from="",  # workdir of a masked autoencoder on the same pictures
        dtype="float32",
    )
    c.optim.update(lr=1e-3, clip=1.0, ema=0.998, warmup_steps=200, weight_decay=0.01)
    c.train.update(batch_size=4, steps=4000, sample_every=1000, checkpoint_every=500)
    if size == "tiny":
        c.data.update(name="emoji32", image_size=16)
        c.autoencoder.update(channels=32, multipliers="1,1", latent_channels=4, fold=2)
        c.optim.update(ema=0.9, warmup_steps=2)
        c.train.update(batch_size=8, steps=6, sample_every=3, checkpoint_every=3)
    return c
