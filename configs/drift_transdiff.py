r"""Drift-AR on TransDiff's 1-step form: class to whole grid, one decoder evaluation per image.

  python -m driftar_jax.train --config=configs/mae.py:digits8 --workdir=runs/mae_digits8
  python -m driftar_jax.train --config=configs/drift_transdiff.py:digits8 \
    --config.drift.features_from=runs/mae_digits8 --workdir=runs/drift_grid_digits8

It drifts in the features of a masked autoencoder, trained by the first command; `tiny` drifts in
the pixels themselves. `--config.init_from` names a run of transdiff_small.py to start from.
`base`, `large` and `huge` have TransDiff's released sizes and were not trained by this project.
"""

import ml_collections

from configs import small

# Released sizes: the decoder is as wide as the backbone, and half as deep.
RELEASED = {
    "base": dict(width=768, depth=24, num_heads=12),
    "large": dict(width=1024, depth=32, num_heads=16),
    "huge": dict(width=1280, depth=40, num_heads=16),
}


def get_config(size: str = "digits8") -> ml_collections.ConfigDict:
    """Everything a run needs; `size` is the word after the colon."""
    if size not in RELEASED and size not in small.DATA:
        allowed = " | ".join([*small.DATA, *RELEASED])
        raise ValueError(f"config size: got {size!r}, allowed {allowed}")
    c = small.base("drift", size if size in small.DATA else "digits8")
    c.train.update(held_out_every=0, judge="")
    c.adapter = dict(rank=0)  # of what learns beside each dense layer of the host; 0: none
    c.host = dict(
        name="transdiff",
        form="one_step",
        row_patch=1,  # one content row for each token: the prior needs a mean for every token
        width=96,
        depth=4,
        num_heads=4,
        buffer_size=4,
        attention_dropout=0.0,
        projection_dropout=0.0,
        label_drop=0.1,
        dtype="float32",
        remat="none",  # of activations: dots | full; memory for time, same gradients
        scan=False,  # blocks as one loop in training, with remat: for TPUs
        attention="auto",  # by platform; or xla | cudnn | pallas
    )
    c.prior = dict(scale="entropy", sigma_max=0.5, tau=2.0, constant=0.25)  # Eq. 6
    c.drift = dict(
        field="laplace",  # of (0.02, 0.05, 0.2) mean distances; or energy
        features="mae",
        features_from="",
        classes=8,  # rows per step: labels of the first images of a batch
        draws=16,  # G
        positives=32,  # P
        unconditional=8,  # N, the carriers of guidance
        chunk=0,  # rows through decoder and features at a time; 0: all
        guidance_max=2.0,  # scales that the decoder learns; 1: none
        width=128,
        depth=4,
        num_heads=4,
        standardised=True,
    )
    c.bank = dict(size=128, dtype="float32", limit_gib=4.0)
    c.loss = dict(freeze_at=0.8)
    c.sample = dict(
        ar_steps=1,
        nfe=1,
        nfe_schedule="constant",
        nfe_last=1,
        guidance=1.0,
        guidance_schedule="constant",
        temperature=1.0,
        drift_scale=1.0,  # of the own head's sampler
    )
    c.optim.update(lr=5e-4, weight_decay=0.01, clip=2.0, schedule="constant")
    if size == "tiny":
        c.host.update(width=16, depth=2, num_heads=2, buffer_size=2)
        c.drift.update(features="identity", classes=3, draws=3, positives=4, unconditional=2)
        c.drift.update(width=12, depth=1, num_heads=2)
        c.bank.size = 6
    if size in RELEASED:
        _released(c, RELEASED[size])
    return c


def _released(c: ml_collections.ConfigDict, of: dict) -> None:
    """KL-16 latents of 256x256 images; the recipe of Drifting's ablation runs."""
    c.data.update(name="latents:data/imagenet256_kl16", image_size=16, patch_size=1, flip=True)
    c.host.update(of, buffer_size=64, attention_dropout=0.1, projection_dropout=0.1)
    c.host.dtype = "bfloat16"
    c.drift.update(width=of["width"], depth=of["depth"] // 2, num_heads=of["num_heads"], chunk=1)
    c.drift.update(classes=64, draws=64, positives=64, unconditional=16, guidance_max=4.0)
    c.bank.update(dtype="bfloat16")
    c.optim.update(lr=2e-4, warmup_steps=5_000, ema=0.999)
    c.train.update(batch_size=64, steps=30_000, log_every=100, sample_every=0)
    c.train.update(checkpoint_every=1_000)
