r"""Ablations of Drift-AR on MAR: each arm changes one thing of `reference`.

python -m driftar_jax.ablate --sweep=configs/sweeps/mar_small.py:digits8 --out=runs/ablation_digits8

The arms of a seed start from the same backbone, trained with its own head (`own`). Arms of one
question are read against `reference`, seed by seed.
"""

from configs.sweeps import arms as shared

# Steps of the own head and of an arm: minutes on one core, and far from converged.
STEPS = {"digits8": (1000, 300), "fashion28": (1000, 300), "emoji32": (1000, 300), "tiny": (4, 5)}


def get_sweep(size: str = "digits8") -> dict:
    """What `driftar_jax.sweeps.arms` reads; `size` is the word after the colon."""
    if size not in STEPS:
        raise ValueError(f"sweep size: got {size!r}, allowed {' | '.join(STEPS)}")
    own, steps = STEPS[size]
    drafts = dict(gamma=1 if size == "tiny" else 2, rule="gaussian")

    def arm(question, *changes, **more):
        return dict(
            question=question,
            config=f"configs/drift_mar_small.py:{size}",
            set=(*shared.short(steps, 200), "mask.tokens_per_image=4", *changes),
            needs={"init_from": "own"},
            **more,
        )

    arms = {
        "own": dict(
            question="own head",
            config=f"configs/mar_small.py:{size}",
            set=shared.short(own, 200, shorten=False),
        ),
        **shared.of_drift(arm, drafts),
        "sigma shuffled": arm("sigma", "prior.scale=shuffled"),
        "no gradient through E": arm("gradient through E", "drift.entropy_gradient=false"),
        "no Entropy-AdaLN": arm("Entropy-AdaLN", "drift.entropy_adaln=false"),
        "MAR law": arm("mask law", "mask.law=mar"),
    }
    for width in (128, 512):
        arms[f"width {width}"] = arm("decoder width", f"drift.width={width}", timed=True)
    for tau in (0.5, 8):
        arms[f"tau {tau:g}"] = arm("tau", f"prior.tau={tau}")
    for sigma in (0.1, 1):
        arms[f"sigma_max {sigma:g}"] = arm("sigma_max", f"prior.sigma_max={sigma}")
    for depth in (2, 3):
        arms[f"draft depth {depth}"] = arm("draft depth", f"draft.depth={depth}", drafts=drafts)
    arms |= shared.of_rules(drafts)
    fewer = dict(ar_steps=2 if size == "tiny" else 4)
    arms["half the AR steps"] = dict(
        question="verification rule", of=shared.REFERENCE, sample=fewer
    )
    if size == "tiny":
        kept = ("own", shared.REFERENCE, "sigma constant", "coupled 2", "width 128")
        arms = {name: arms[name] for name in kept}
    elif size != "fashion28":  # where longer runs of both fields are measured: docs/results.md, 4
        arms |= _grids(size, shared.short(steps, 200))
    return dict(
        seeds=(0, 1) if size == "tiny" else (0, 1, 2),
        images=16 if size == "tiny" else 1024,
        judge=shared.judge(size),
        reference=shared.REFERENCE,
        arms=arms,
    )


def _grids(size: str, changes: tuple[str, ...]) -> dict:
    """Both fields on whole grids: a token of MAR has one real continuation, too few for laplace."""
    grid = dict(
        question="field (whole grids)",
        config=f"configs/drift_transdiff.py:{size}",
        needs={"drift.features_from": "features"},
    )
    return {
        "features": dict(
            config=f"configs/mae.py:{size}",
            set=("train.keep=1", "train.checkpoint_every=500", "train.steps=600"),
            once=True,
        ),
        "grid laplace": {**grid, "set": changes},
        "grid energy": {**grid, "set": (*changes, "drift.field=energy"), "against": "grid laplace"},
    }
