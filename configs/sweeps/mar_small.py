r"""Ablations of Drift-AR on MAR: each arm changes one thing of `reference`.

python -m driftar_jax.ablate --sweep=configs/sweeps/mar_small.py:digits8 --out=runs/ablation_digits8

The arms of a seed start from the same backbone, trained with its own head (`own`). Arms of one
question are read against `reference`, seed by seed.
"""

from configs import small

# Steps of the own head and of an arm: minutes on one core, and far from converged.
STEPS = {"digits8": (1000, 300), "fashion28": (1000, 400), "emoji32": (1000, 300), "tiny": (4, 5)}

REFERENCE = "reference"


def get_sweep(size: str = "digits8") -> dict:
    """What `driftar_jax.evaluation.sweep` reads; `size` is the word after the colon."""
    if size not in small.DATA:
        raise ValueError(f"sweep size: got {size!r}, allowed {' | '.join(small.DATA)}")
    own, steps = STEPS[size]
    saves = "train.keep=1", "train.checkpoint_every=200", "train.sample_every=0"
    short = (*saves, f"train.steps={steps}", f"optim.warmup_steps={max(steps // 10, 1)}")
    drift = dict(
        config=f"configs/drift_mar_small.py:{size}",
        set=(*short, "mask.tokens_per_image=4"),
        needs={"init_from": "own"},
    )
    drafts = dict(gamma=1 if size == "tiny" else 2, rule="gaussian")

    def arm(question, *changes, **more):
        return {**drift, "question": question, **more, "set": (*drift["set"], *changes)}

    def sampled(question, **sample):
        return dict(question=question, of=REFERENCE, sample=sample)

    arms = {
        "own": dict(
            question="own head",
            config=f"configs/mar_small.py:{size}",
            set=(*saves, f"train.steps={own}"),
        ),
        REFERENCE: arm("", drafts=drafts, timed=True),
        "draft entropy none": arm("entropy loss", "loss.entropy_loss=none", drafts=drafts),
        "draft entropy maximize": arm("entropy loss", "loss.entropy_loss=maximize", drafts=drafts),
        "sigma constant": arm(
            "sigma", "prior.scale=constant", measured={"prior.constant": (REFERENCE, "sigma_mean")}
        ),
        "sigma zero": arm("sigma", "prior.scale=constant", "prior.constant=0"),
        "sigma shuffled": arm("sigma", "prior.scale=shuffled"),
        "sigma learned": arm("sigma", "prior.scale=learned"),
        "no gradient through E": arm("gradient through E", "drift.entropy_gradient=false"),
        "bare start": arm("standardised start", "drift.standardised=false"),
        "no Entropy-AdaLN": arm("Entropy-AdaLN", "drift.entropy_adaln=false"),
        "one phase": arm("phases", "loss.freeze_at=1"),
        "MAR law": arm("mask law", "mask.law=mar"),
    }
    for width in (128, 512):
        arms[f"width {width}"] = arm("decoder width", f"drift.width={width}", timed=True)
    for tau in (0.5, 8):
        arms[f"tau {tau:g}"] = arm("tau", f"prior.tau={tau}")
    for sigma in (0.1, 1):
        arms[f"sigma_max {sigma:g}"] = arm("sigma_max", f"prior.sigma_max={sigma}")
    for draws in (2, 8):
        arms[f"G {draws}"] = arm("draws", f"drift.draws={draws}")
    for depth in (2, 3):
        arms[f"draft depth {depth}"] = arm("draft depth", f"draft.depth={depth}", drafts=drafts)
    for rule, delta in (("gaussian", 0.0), ("coupled", 2.0), ("feature", 0.1)):
        name = rule if rule == "gaussian" else f"{rule} {delta:g}"
        arms[name] = sampled("verification rule", **{**drafts, "rule": rule, "delta": delta})
    arms["half the AR steps"] = sampled("verification rule", ar_steps=2 if size == "tiny" else 4)
    if size == "tiny":
        kept = ("own", REFERENCE, "sigma constant", "coupled 2", "width 128")
        arms = {name: arms[name] for name in kept}
    else:
        arms |= _grids(size, short)
    return dict(
        seeds=(0, 1) if size == "tiny" else (0, 1, 2),
        images=16 if size == "tiny" else 1024,
        judge=dict(
            config=f"configs/classifier.py:{size}",
            set=("train.keep=1",),
        ),
        reference=REFERENCE,
        arms=arms,
    )


def _grids(size: str, short: tuple[str, ...]) -> dict:
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
        "grid laplace": {**grid, "set": short},
        "grid energy": {**grid, "set": (*short, "drift.field=energy"), "against": "grid laplace"},
    }
