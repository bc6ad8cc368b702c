r"""Whose backbone Drift-AR stands on: taught by the drift, left as its own head made it, or both.

python -m driftar_jax.ablate --sweep=configs/sweeps/backbone.py:fashion28 --out=runs/whose_7x7
python -m driftar_jax.ablate --sweep=configs/sweeps/backbone.py:fashion28_4x4 --out=runs/whose_4x4

The arms of a seed start from the same backbone, trained with its own head (`own`), and take about
as long: the steps of each are scaled by the seconds of one (STEPS).
"""

from configs.sweeps import arms as shared

FASHION = ("mask.tokens_per_image=4",)
# 49 tokens of 16 numbers, in place of 16 of 49.
FINE = ("data.patch_size=4",)
SIZES = {"fashion28": FASHION, "fashion28_4x4": (*FASHION, *FINE), "tiny": ()}
# Of the own head, and of an arm by what learns in it: about as many operations each. A step has
# 8.99 (joint), 6.99 (frozen) and 15.28 GFLOP (own loss) in 7x7, the mean over both phases. `longer`
# is the own head that goes on: 250 of its steps are a fifth more seconds than 200 of `joint`.
STEPS = {
    "fashion28": dict(own=500, longer=250, joint=200, frozen=257, own_loss=118, own_positives=219),
    "tiny": dict(own=4, longer=4, joint=5, frozen=6, own_loss=4, own_positives=4),
}
STEPS["fashion28_4x4"] = STEPS["fashion28"]
# Enough for a judge of short runs: 2,000 would take longer than all arms together.
JUDGE = {"fashion28": ("train.steps=250",)}


def get_sweep(size: str = "fashion28") -> dict:
    """What `driftar_jax.sweeps.arms` reads; `size` is the word after the colon."""
    if size not in STEPS:
        raise ValueError(f"sweep size: got {size!r}, allowed {' | '.join(STEPS)}")
    steps, made, few = STEPS[size], SIZES[size], size == "tiny"
    of = size.removesuffix("_4x4")

    def arm(question, learns, *changes, config="drift_mar_small", **more):
        return dict(
            question=question,
            config=f"configs/{config}.py:{of}",
            set=(*made, *shared.short(steps[learns], 100), *changes),
            needs={"init_from": "own"},
            **more,
        )

    def frozen(question, *changes, **more):
        return arm(question, "frozen", "drift.backbone=frozen", *changes, **more)

    whose, sigma = "backbone", "sigma on a frozen backbone"
    arms = {
        "own": dict(
            question=whose,
            config=f"configs/mar_small.py:{of}",
            set=(*made, *shared.short(steps["own"], 250, shorten=False)),
        ),
        shared.REFERENCE: arm("", "joint"),
        "own longer": arm(whose, "longer", config="mar_small"),
        "frozen": frozen(whose),
        "own loss": arm(whose, "own_loss", "drift.backbone=own_loss", config="drift_mar_own"),
        "frozen sigma constant": frozen(sigma, "prior.scale=constant", against="frozen"),
        "frozen sigma learned": frozen(sigma, "prior.scale=learned", against="frozen"),
    }
    judge = shared.judge(of)
    judge["set"] += JUDGE.get(of, ())
    return dict(
        seeds=(0, 1) if few else (0, 1, 2),
        images=16 if few else 1024,
        judge=judge,
        reference=shared.REFERENCE,
        arms=arms,
    )
