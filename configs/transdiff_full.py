"""What the configs of TransDiff's released sizes share: recipe and evaluation of its program.

Tokens are KL-16 latents of 256x256 images, 16 x 16 of 16 channels (512: 32 x 32). `mrar` and `512`
are fine-tuned from the 1-step form; how its arrays became those of the other shapes was not
published, so their released weights have to be converted. `:tiny` keeps every section and shrinks
every size, on a set of the package: for tests.
"""

import ml_collections

# Guidance, drift scale and noise scale of the published figures, by variant.
SIZES = {
    "base": dict(
        width=768,
        depth=24,
        num_heads=12,
        head=12,
        scales={"": (1.30, 0.87, 0.91), "mrar": (1.30, 0.87, 0.91)},
    ),
    "large": dict(
        width=1024,
        depth=32,
        num_heads=16,
        head=16,
        scales={"": (1.30, 0.89, 0.95), "mrar": (1.30, 0.925, 0.95), "512": (1.30, 0.87, 0.87)},
    ),
    "huge": dict(
        width=1280,
        depth=40,
        num_heads=16,
        head=20,
        scales={"": (1.23, 0.87, 0.93), "mrar": (1.28, 0.87, 0.91)},
    ),
}
# Steps are 625 an epoch.
RECIPES = {
    "": dict(lr=8e-4, warmup_steps=62_500, ema=0.9999, steps=500_000, copies=4),
    "mrar": dict(lr=5e-5, warmup_steps=6_250, ema=0.9999, steps=25_000, copies=2),
    "512": dict(lr=1e-4, warmup_steps=6_250, ema=0.999, steps=93_750, copies=4),
}


def own_head(size: str, variant: str) -> ml_collections.ConfigDict:
    """TransDiff with its own head, as released; `variant` is the word after the colon."""
    of = SIZES[size]
    variants = [v for v in of["scales"] if v]
    if variant not in ("", "tiny", *variants):
        allowed = " | ".join(["tiny", *variants])
        raise ValueError(f"config size: got {variant!r}, allowed {allowed}, or no word")
    kind = "" if variant == "tiny" else variant
    recipe, row = RECIPES[kind], kind == "mrar"
    guidance, drift_scale, noise_scale = of["scales"][kind]
    c = ml_collections.ConfigDict()
    c.task = "host"
    c.seed = 0
    c.init_from = ""  # workdir of a checkpoint whose host this run starts from
    c.data = dict(
        name=f"latents:data/imagenet{512 if kind == '512' else 256}_kl16",  # written by `encode`
        data_dir="",
        image_size=32 if kind == "512" else 16,  # side of the token grid
        patch_size=1,
        center_crop=True,
        flip=True,  # every visit takes the image's moments or its mirror image's
    )
    c.host = dict(
        name="transdiff",
        form="mrar" if row else "one_step",
        row_patch=1 if kind == "" else 2,  # side of the square of tokens behind one content row
        width=of["width"],
        depth=of["depth"],
        num_heads=of["num_heads"],
        buffer_size=64,
        attention_dropout=0.1,
        projection_dropout=0.1,
        label_drop=0.1,
        dtype="float32",
        remat="none",  # of activations: dots | full; memory for time, same gradients
        scan=False,  # blocks as one loop in training, with remat: for TPUs
        attention="auto",  # by platform; or xla | cudnn | pallas
    )
    c.head = dict(depth=of["head"], copies=recipe["copies"])
    if row:
        c.bank = dict(size=16, dtype="bfloat16", limit_gib=1.0)
    c.optim = dict(
        lr=recipe["lr"],
        schedule="constant",
        warmup_steps=recipe["warmup_steps"],
        weight_decay=0.02,
        b2=0.95,
        clip=3.0,
        ema=recipe["ema"],
        accumulate=1,
        freeze="",
    )
    c.train = dict(
        batch_size=2048,
        steps=recipe["steps"],
        log_every=100,
        sample_every=0,
        checkpoint_every=5_000,
        checkpoint_minutes=30.0,  # at least that often; 0: by steps alone
        keep=2,
    )
    c.mesh = dict(data=-1, fsdp=1, tensor=1)  # -1: whatever the other axes leave
    c.sample = dict(
        ar_steps=4 if row else 1,
        nfe=100,
        nfe_schedule="constant",
        nfe_last=5,  # read by the other schedules: head steps of the last image in a row
        guidance=guidance,
        guidance_schedule="constant",
        temperature=noise_scale,  # factor of the step noise
        drift_scale=drift_scale,  # factor of the drift
    )
    if variant == "tiny":
        c.data.update(name="digits8", image_size=8, patch_size=4, flip=False)
        c.host.update(width=16, depth=2, num_heads=2, buffer_size=2)
        c.head.update(depth=1, copies=2)
        c.optim.update(warmup_steps=2)
        c.train.update(batch_size=8, steps=6, log_every=2, checkpoint_every=3)
        c.sample.update(nfe=4, nfe_last=2)
    return c
