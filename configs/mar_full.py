"""What the configs of MAR's released sizes share: recipe and evaluation of the official program.

Tokens are KL-16 latents of 256x256 images, 16 x 16 of 16 channels. `:tiny` keeps every section and
shrinks every size, on a set of the package: for tests.
"""

import ml_collections

# Guidance scales of the published figures (linear, 256 AR steps, 100 head steps).
SIZES = {
    "base": dict(width=768, depth=12, num_heads=12, head=(6, 1024), guidance=2.9),
    "large": dict(width=1024, depth=16, num_heads=16, head=(8, 1280), guidance=3.0),
    "huge": dict(width=1280, depth=20, num_heads=16, head=(12, 1536), guidance=3.2),
}


def own_head(size: str, variant: str) -> ml_collections.ConfigDict:
    """MAR with its own head, as released: 800 epochs on ImageNet, 625 steps each."""
    c = _shared("host", size, variant)
    depth, width = SIZES[size]["head"]
    c.head = dict(width=width, depth=depth, copies=4)
    c.mask = dict(law="mar", tokens_per_image=0)
    if variant == "tiny":
        _shrink(c)
        c.head.update(width=16, depth=1, copies=2)
    return c


def drift(size: str, variant: str) -> ml_collections.ConfigDict:
    """Drift-AR on a released host; `init_from` names the converted checkpoint."""
    c = _shared("drift", size, variant)
    depth, width = SIZES[size]["head"]
    c.prior = dict(scale="entropy", sigma_max=0.5, tau=2.0, constant=0.25)  # Eq. 6
    c.drift = dict(
        field="energy",
        draws=4,
        width=width,
        depth=depth,
        standardised=True,
        entropy_adaln=True,
        entropy_gradient=True,
        guidance_max=4.0,  # scales up to it are trained into the decoder: half the rows at sampling
        backbone="joint",  # or frozen: that of init_from stays
        repulsion=1.0,  # of the draws; above 1 they spread wider than the data
        repulsion_schedule="constant",  # or annealed: to 1 at the last step
    )
    c.draft = dict(width=512, depth=2, num_heads=8)
    c.loss = dict(entropy_loss="match", alpha_start=0.95, freeze_at=0.8)  # Eq. 9-10
    c.mask = dict(law="generation", tokens_per_image=64)
    c.optim.update(lr=1e-4, schedule="cosine", warmup_steps=2_000)
    c.train.update(batch_size=512, steps=100_000)
    c.sample.update(ar_steps=64)  # as the draft head is trained for; hold the own head to the same
    c.sample.update(gamma=0, rule="gaussian", delta=1.0)  # speculative decoding: 0 is without
    if variant == "tiny":
        _shrink(c)
        c.drift.update(width=16, depth=1, draws=2)
        c.draft.update(width=16, depth=1, num_heads=2)
    return c


def _shared(task: str, size: str, variant: str) -> ml_collections.ConfigDict:
    if variant not in ("", "tiny"):
        raise ValueError(f"config size: got {variant!r}, allowed tiny, or no word after the file")
    of = SIZES[size]
    c = ml_collections.ConfigDict()
    c.task = task
    c.seed = 0
    c.init_from = ""  # workdir of a checkpoint whose host this run starts from
    c.data = dict(
        name="latents:data/imagenet256_kl16",  # written by `encode`
        data_dir="",
        image_size=16,  # side of the token grid
        patch_size=1,
        center_crop=True,
        flip=True,  # every visit takes the image's moments or its mirror image's
    )
    c.host = dict(
        name="mar",
        width=of["width"],
        encoder_depth=of["depth"],
        decoder_depth=of["depth"],
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
    c.optim = dict(
        lr=8e-4,  # 1e-4 for each 256 images of the batch
        schedule="constant",
        warmup_steps=62_500,  # 100 epochs
        weight_decay=0.02,
        b2=0.95,
        clip=3.0,
        ema=0.9999,
        accumulate=1,
        freeze="",
    )
    c.train = dict(
        batch_size=2048,
        steps=500_000,
        log_every=100,
        sample_every=0,
        checkpoint_every=5_000,
        checkpoint_minutes=30.0,  # at least that often; 0: by steps alone
        keep=2,
    )
    c.mesh = dict(data=-1, fsdp=1, tensor=1)  # -1: whatever the other axes leave
    c.sample = dict(
        ar_steps=256,
        nfe=100,
        nfe_schedule="constant",
        nfe_last=5,  # read by the other schedules: head steps of the last AR steps
        guidance=of["guidance"],  # without guidance: 1.0, and temperature 0.95
        guidance_schedule="linear",
        temperature=1.0,
        spacing="even",
    )
    return c


def _shrink(c: ml_collections.ConfigDict) -> None:
    """The same sections at the smallest sizes, on images of the package."""
    c.data.update(name="digits8", image_size=8, patch_size=4, flip=False)
    c.host.update(width=16, encoder_depth=1, decoder_depth=2, num_heads=2, buffer_size=2)
    c.optim.update(warmup_steps=2)
    c.train.update(batch_size=8, steps=6, log_every=2, checkpoint_every=3)
    c.mask.update(tokens_per_image=min(c.mask.tokens_per_image, 4))
    c.sample.update(ar_steps=3, nfe=4, nfe_last=2)
