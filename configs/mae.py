r"""The masked autoencoder whose features whole-grid drifting compares; not a generator.

python -m driftar_jax.train --config=configs/mae.py:fashion28 --workdir=runs/mae_fashion28
"""

import ml_collections

from configs import small


def get_config(size: str = "fashion28") -> ml_collections.ConfigDict:
    """Everything a run needs; `size` is the word after the colon."""
    c = small.base("mae", size if size != "imagenet256" else "digits8")
    # Three stages: sides 8, 4, 2 of digits; 14, 7, 4; 16, 8, 4; 32, 16, 8.
    c.mae = dict(
        width=16,
        patch=2 if size in ("fashion28", "emoji32", "emoji64") else 1,
        blocks="1,2,1",
        label_from=0.7,
        dtype="float32",
    )
    c.optim.update(weight_decay=0.01, clip=2.0)
    c.train.update(steps=2000, sample_every=0)
    if size == "tiny":
        c.mae.update(width=4, blocks="1,2")
        c.train.steps = 6
    if size == "imagenet256":  # the MAE-256 of arXiv 2602.04770, on 16x16x16 latents
        c.data.update(name="latents:data/imagenet256_kl16", image_size=16, patch_size=1, flip=True)
        c.mae.update(width=256, blocks="3,4,6,3", label_from=0.9, dtype="bfloat16")
        c.optim.update(lr=4e-3, schedule="constant", warmup_steps=4_000, ema=0.9995)
        c.train.update(batch_size=8192, steps=30_000, checkpoint_every=1_000)
    return c
