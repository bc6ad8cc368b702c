r"""Ablations of Drift-AR on whole grids: how many draws and real samples, and which features.

python -m driftar_jax.ablate --sweep=configs/sweeps/transdiff_small.py:digits8 --out=runs/grid_arms

Every arm starts from scratch with the field `laplace`, but for the arm that names another.
"""

from configs.sweeps import arms as shared

# Steps of an arm, of the masked autoencoder, and of the flow head behind `penultimate`.
STEPS = {
    "digits8": (1000, 1500, 1000),
    "fashion28": (1000, 1500, 1000),
    "tiny": (3, 3, 3),
}

REFERENCE = "G 16 P 32"


def get_sweep(size: str = "digits8") -> dict:
    """What `driftar_jax.sweeps.arms` reads; `size` is the word after the colon."""
    if size not in STEPS:
        raise ValueError(f"sweep size: got {size!r}, allowed {' | '.join(STEPS)}")
    steps, features, own = STEPS[size]
    few = size == "tiny"

    def arm(question, *changes, needs="features"):
        return dict(
            question=question,
            config=f"configs/drift_transdiff.py:{size}",
            set=(
                *shared.short(steps, 200),
                "drift.guidance_max=1",
                "drift.features=mae",
                *changes,
            ),
            needs={"drift.features_from": needs},
        )

    def behind(config, steps):
        return dict(
            config=f"configs/{config}.py:{size}",
            set=shared.short(steps, 200, shorten=False),
            once=True,
        )

    arms = {
        "features": behind("mae", features),
        "flow": behind("transdiff_small", own),
        REFERENCE: arm("", *([] if few else ["drift.draws=16", "drift.positives=32"])),
    }
    for draws, positives in ((4, 8), (4, 32), (16, 8), (32, 32), (16, 64)):
        changes = f"drift.draws={draws}", f"drift.positives={positives}"
        arms[f"G {draws} P {positives}"] = arm("draws and positives", *changes)
    arms["identity"] = {**arm("features", "drift.features=identity"), "needs": {}}
    arms["penultimate"] = arm("features", "drift.features=penultimate", needs="flow")
    arms["energy"] = arm("field", "drift.field=energy")
    if few:
        arms = {name: arms[name] for name in ("features", "flow", REFERENCE, "penultimate")}
    return dict(
        seeds=(0, 1) if few else (0, 1, 2),
        images=16 if few else 1024,
        judge=shared.judge(size),
        reference=REFERENCE,
        arms=arms,
    )
