r"""Ablations of Drift-AR on NextStep-1: each arm changes one thing of `reference`.

python -m driftar_jax.ablate --sweep=configs/sweeps/nextstep_small.py:emoji32 --out=runs/next_arms

Tokens come one by one, so that entropies cannot be shuffled and masks have no law.
"""

from configs import nextstep_small
from configs.sweeps import arms as shared


def get_sweep(size: str = "emoji32") -> dict:
    """What `driftar_jax.evaluation.sweep` reads; `size` is the word after the colon."""
    if size not in nextstep_small.SIZES:
        raise ValueError(f"sweep size: got {size!r}, allowed {' | '.join(nextstep_small.SIZES)}")
    own, steps = (600, 200) if size == "emoji32" else (4, 5)
    drafts, judge = dict(gamma=2, rule="gaussian"), shared.judge(size)
    if size == "tiny":
        data = ("data.name=emoji32", "data.image_size=12", "data.patch_size=4")
        judge["set"] += data

    def arm(question, *changes, **more):
        return dict(
            question=question,
            config=f"configs/drift_nextstep.py:{size}",
            set=(*shared.short(steps, 100), "drift.guidance_max=1", *changes),
            needs={"init_from": "own"},
            **more,
        )

    return dict(
        seeds=(0, 1, 2),
        images=256 if size == "emoji32" else 16,
        judge=judge,
        reference=shared.REFERENCE,
        arms={
            "own": dict(
                question="own head",
                config=f"configs/nextstep_small.py:{size}",
                set=shared.short(own, 100, shorten=False),
            ),
            **shared.of_drift(arm, drafts),
            "width 384": arm("decoder width", "drift.width=384", timed=True),
            **shared.of_rules(drafts),
        },
    )
