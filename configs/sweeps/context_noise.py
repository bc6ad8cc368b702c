r"""Whether contexts with noisy tokens make lookahead settle more, on NextStep-1.

python -m driftar_jax.ablate --sweep=configs/sweeps/context_noise.py:emoji32 --out=runs/noise

Arms of a seed start from the backbone of the shipped checkpoint, trained without noise, and learn
for as many steps. Tokens of emoji32 spread by 0.44, so that noise 0.5 is a little more at most.
"""

from configs.sweeps import arms as shared

# Where the shipped backbone is, which has 64 tokens an image.
BEGUN = "init_from=models/nextstep_emoji32"
SIZES = {
    "emoji32": (BEGUN, *shared.short(300, 100)),
    "tiny": shared.short(5, 100),
}
# Without guidance, whose unconditional branch is a third of a step.
DRIFT = ("drift.guidance_max=1",)
NOISE = (0.2, 0.5, 1.0)


def get_sweep(size: str = "emoji32") -> dict:
    """What `driftar_jax.sweeps.arms` reads; `size` is the word after the colon."""
    if size not in SIZES:
        raise ValueError(f"sweep size: got {size!r}, allowed {' | '.join(SIZES)}")
    few = size == "tiny"

    def arm(question, *changes):
        return dict(
            question=question,
            config=f"configs/drift_nextstep.py:{size}",
            set=(*SIZES[size], *DRIFT, *changes),
            lookahead=4 if few else 16,
        )

    judge = shared.judge(size)
    judge["set"] += ("train.steps=6",) if few else ("train.steps=250",)
    if few:
        judge["set"] += ("data.name=emoji32", "data.image_size=12", "data.patch_size=4")
    return dict(
        seeds=(0,) if few else (0, 1, 2),
        images=16 if few else 1024,
        judge=judge,
        reference=shared.REFERENCE,
        arms={
            shared.REFERENCE: arm(""),
            **{f"noise {s:g}": arm("contraction", f"host.context_noise={s}") for s in NOISE},
        },
    )
