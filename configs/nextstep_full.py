"""What the configs of NextStep-1's released size share.

Tokens are 2x2 patches of f8 latents of 256x256 images: 16 x 16 tokens of 64 numbers. `encode` makes
no f8 latents with captions, so these configs are there to be measured (`scale`), not trained;
released weights are converted and sampled.
"""

import ml_collections


def start(variant: str) -> str:
    """Size of the small config to begin with; `variant` is the word after the colon."""
    if variant not in ("", "tiny"):
        raise ValueError(f"config size: got {variant!r}, allowed tiny, or no word")
    return variant or "emoji32"


def enlarge(c: ml_collections.ConfigDict) -> None:
    """Released sizes in place of the small ones; batch and rates are round figures."""
    c.data.update(name="latents:data/captioned256_f8", image_size=32, patch_size=2)
    c.host.update(width=5120, depth=48, num_heads=40, num_kv_heads=8, mlp_width=13824)
    c.host.update(norm_eps=1e-5, rope_theta=1e6, dtype="bfloat16", remat="full")
    c.text.update(length=128, unknown=0.0)
    c.mask.tokens_per_image = 0
    c.sample.update(ar_steps=256)
    c.optim.update(lr=1e-4, schedule="constant", warmup_steps=1_000, weight_decay=0.1, ema=0.9999)
    c.train.update(batch_size=512, steps=100_000, log_every=100, sample_every=0)
    c.train.update(checkpoint_every=1_000, checkpoint_minutes=30.0)
