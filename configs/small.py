"""What the configs of the small embedded image sets share."""

import ml_collections

# Patch sizes give 16, 16, 64 and 64 tokens; `tiny` is for tests.
DATA = {
    "digits8": dict(name="digits8", image_size=8, patch_size=2),
    "fashion28": dict(name="fashion28", image_size=28, patch_size=7),
    "emoji32": dict(name="emoji32", image_size=32, patch_size=4),
    "emoji64": dict(name="emoji64", image_size=64, patch_size=8),
    "tiny": dict(name="digits8", image_size=8, patch_size=4),
    # One's own pictures, --config.data.name=folder:PATH; they decide what is 0 here.
    "own": dict(name="", image_size=0, patch_size=0),
}

# What `encode` makes of emoji64 with an autoencoder of configs/autoencoder.py: 64 tokens of 16.
EMOJI64_LATENTS = dict(name="latents:data/emoji64_f8", image_size=8, patch_size=1)


def base(task: str, size: str) -> ml_collections.ConfigDict:
    """Sections every task has; `size` is the word after the colon."""
    if size not in DATA:
        raise ValueError(f"config size: got {size!r}, allowed {' | '.join(DATA)}")
    c = ml_collections.ConfigDict()
    c.task = task
    c.seed = 0
    c.init_from = ""  # workdir of a checkpoint whose host this run starts from
    made_of = DATA[size]
    if size == "emoji64" and task in ("host", "drift", "draft"):
        made_of = EMOJI64_LATENTS
    c.data = dict(**made_of, data_dir="", center_crop=True, flip=False)
    c.optim = dict(
        lr=1e-3,
        schedule="cosine",
        warmup_steps=100,
        weight_decay=0.02,
        b2=0.95,
        clip=3.0,
        ema=0.995,
        accumulate=1,
        freeze="",
    )
    c.train = dict(
        batch_size=64,
        steps=1500,
        log_every=50,
        sample_every=500,
        checkpoint_every=500,
        checkpoint_minutes=0.0,  # 0: by steps alone
        keep=2,
    )
    if size == "emoji64":
        c.optim.ema = 0.999
        c.train.update(batch_size=32, steps=4000, checkpoint_every=250, sample_every=1000)
    if size == "fashion28":
        c.train.steps = 1000  # five epochs: what an hour on two cores allows for twelve runs
    if size == "own":
        c.train.batch_size = 0  # 64, or all pictures of a smaller set
    c.mesh = dict(data=-1, fsdp=1, tensor=1)  # -1: whatever the other axes leave
    if size == "tiny":
        c.optim.warmup_steps = 2
        c.train.update(batch_size=8, steps=6, log_every=2, sample_every=0, checkpoint_every=3)
    return c


def generative(task: str, size: str) -> ml_collections.ConfigDict:
    """`base` with a small MAR host, its contexts and its sampling settings."""
    c = base(task, size)
    c.train.update(held_out_every=0, judge="")
    c.adapter = dict(rank=0)  # of what learns beside each dense layer of the host; 0: none
    c.host = dict(
        name="mar",
        width=96,
        encoder_depth=2,
        decoder_depth=2,
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
    c.mask = dict(
        law="generation",  # half MAR's law, half the contexts that sampling meets
        tokens_per_image=4,  # unknown tokens per image whose head is trained; 0: all
    )
    c.sample = dict(
        ar_steps=8,
        nfe=50,
        nfe_schedule="constant",
        nfe_last=5,  # read by the other schedules: head steps of the last AR steps
        guidance=1.0,
        guidance_schedule="linear",
        temperature=0.95,  # as MAR without guidance
        spacing="trimmed",
    )
    if size == "emoji64":
        c.host.update(width=192, encoder_depth=3, decoder_depth=3, num_heads=6, buffer_size=8)
        c.mask.tokens_per_image = 8
    if size == "tiny":
        c.host.update(width=16, encoder_depth=1, num_heads=2, buffer_size=2)
        c.sample.update(ar_steps=3, nfe=4)
    return c
