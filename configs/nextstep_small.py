r"""NextStep-1 at a small size with its own flow head: captions to pictures of emoji.

python -m driftar_jax.train --config=configs/nextstep_small.py:emoji32 --workdir=runs/next_emoji32
"""

import ml_collections

from configs import small

SIZES = ("emoji32", "emoji64", "tiny", "own")


def get_config(size: str = "emoji32") -> ml_collections.ConfigDict:
    """Everything a run needs; `size` is the word after the colon."""
    c = generative("host", size)
    c.head = dict(width=192, depth=3, copies=2)
    if size == "tiny":
        c.head.update(width=16, depth=1)
    return c


def generative(task: str, size: str) -> ml_collections.ConfigDict:
    """The sections that the own head and Drift-AR share."""
    if size not in SIZES:
        raise ValueError(f"config size: got {size!r}, allowed {' | '.join(SIZES)}")
    c = small.base(task, size)
    c.train.update(held_out_every=0, judge="")
    c.adapter = dict(rank=0)  # of what learns beside each dense layer of the host; 0: none
    c.host = dict(
        name="nextstep",
        width=96,
        depth=4,
        num_heads=4,
        num_kv_heads=2,
        mlp_width=256,
        norm_eps=1e-6,
        rope_theta=10000.0,
        label_drop=0.1,  # share of the captions that are dropped
        context_noise=0.0,  # on tokens as the host reads them in training, at most
        dtype="float32",
        remat="none",  # of activations: dots | full; memory for time, same gradients
        attention="auto",  # by platform; or xla | cudnn | pallas
    )
    c.text = dict(
        length=16,  # most words of a caption
        unknown=0.05,  # share of the words that are hidden, so that unknown ones do no harm
    )
    c.mask = dict(tokens_per_image=16)  # tokens per image whose head is trained; 0: all
    c.sample = dict(
        ar_steps=64,
        nfe=50,
        guidance=1.0,
        guidance_schedule="constant",
        temperature=1.0,
    )
    if size == "emoji64":
        c.host.update(width=192, depth=6, num_heads=6, mlp_width=512)
        # Its own tokens stray from the data's, and it is trained to bear that: without it, samples
        # of short runs are farther from the data ("Noise in the contexts" in docs/results.md).
        c.host.context_noise = 1.0
        c.text.length = 20  # its longest caption has 17 words
        c.train.update(batch_size=16, steps=5000)
    else:
        c.optim.ema = 0.99  # with 0.995, a short run's average still holds the fresh head
        c.train.update(batch_size=32, steps=1000)
    if size == "own":  # as many as the captions and the pictures need
        c.text.length, c.sample.ar_steps, c.train.batch_size = 0, 0, 0
    if size == "tiny":
        c.data.update(name="emoji32", image_size=12, patch_size=4)
        c.host.update(width=16, depth=2, num_heads=2, num_kv_heads=1, mlp_width=20)
        c.mask.tokens_per_image = 4
        c.sample.update(ar_steps=9, nfe=4)
        c.train.batch_size = 8
        c.train.steps = 6
    return c
