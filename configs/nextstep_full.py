"""What the configs of NextStep-1's released size share.

Tokens are 2x2 patches of f8 latents of 256x256 images: 16 x 16 tokens of 64 numbers. `encode` makes
no f8 latents with captions, so these configs are there to be measured (`scale`), not trained;
released weights are converted and sampled. `:tiny` keeps every section and shrinks every size, on a
set of the package.
"""

import ml_collections

from configs import nextstep_small


def generative(task: str, variant: str) -> ml_collections.ConfigDict:
    """The sections that the own head and Drift-AR share; `variant` is the word after the colon."""
    if variant not in ("", "tiny"):
        raise ValueError(f"config size: got {variant!r}, allowed tiny, or no word")
    c = nextstep_small.generative(task, "tiny" if variant else "emoji32")
    if variant:
        return c
    c.data.update(name="latents:data/captioned256_f8", image_size=32, patch_size=2)
    c.host.update(
        width=5120,
        depth=48,
        num_heads=40,
        num_kv_heads=8,
        mlp_width=13824,
        norm_eps=1e-5,
        rope_theta=1e6,
        dtype="bfloat16",
        remat="full",
    )
    c.text.update(length=128, unknown=0.0)
    c.mask.tokens_per_image = 0
    c.sample.update(ar_steps=256, nfe=28, guidance=7.5, guidance_schedule="constant")
    c.optim.update(lr=1e-4, schedule="constant", warmup_steps=1_000, weight_decay=0.1, ema=0.9999)
    c.train.update(batch_size=512, steps=100_000, log_every=100, sample_every=0)
    c.train.update(checkpoint_every=1_000, checkpoint_minutes=30.0)
    return c
