r"""Ablations of Drift-AR on NextStep-1: each arm changes one thing of `reference`.

python -m driftar_jax.ablate --sweep=configs/sweeps/nextstep_small.py:emoji32 --out=runs/next_arms

Pictures are 16 pixels wide, 16 tokens in place of 64: so an arm can learn as long as its own head
in minutes. Tokens come one by one, so that entropies cannot be shuffled and masks have no law.
"""

from configs import nextstep_small
from configs.sweeps import arms as shared

STEPS = {"emoji32": (1000, 1000), "tiny": (4, 5)}
# Of every run, the judge's as well, and of the others.
PICTURES = {"emoji32": ("data.image_size=16",)}
PICTURES["tiny"] = ("data.name=emoji32", "data.image_size=12", "data.patch_size=4")
TOKENS = {"emoji32": ("sample.ar_steps=16", "mask.tokens_per_image=8"), "tiny": ()}
# Without guidance; the backbone, trained before, is frozen halfway: then a step takes half as long.
DRIFT = ("drift.guidance_max=1", "loss.freeze_at=0.5")


def get_sweep(size: str = "emoji32") -> dict:
    """What `driftar_jax.sweeps.arms` reads; `size` is the word after the colon."""
    if size not in nextstep_small.SIZES:
        raise ValueError(f"sweep size: got {size!r}, allowed {' | '.join(nextstep_small.SIZES)}")
    own, steps = STEPS[size]
    made = (*PICTURES[size], *TOKENS[size])
    drafts, judge = dict(gamma=2, rule="gaussian"), shared.judge(size)
    judge["set"] += PICTURES[size]

    def arm(question, *changes, **more):
        return dict(
            question=question,
            config=f"configs/drift_nextstep.py:{size}",
            set=(*made, *shared.short(steps, 100), *DRIFT, *changes),
            needs={"init_from": "own"},
            **more,
        )

    return dict(
        seeds=(0, 1, 2),
        images=1024 if size == "emoji32" else 16,
        judge=judge,
        reference=shared.REFERENCE,
        arms={
            "own": dict(
                question="own head",
                config=f"configs/nextstep_small.py:{size}",
                set=(*made, *shared.short(own, 100, shorten=False)),
            ),
            **shared.of_drift(arm, drafts),
            "width 384": arm("decoder width", "drift.width=384", timed=True),
            **shared.of_rules(drafts),
        },
    )
