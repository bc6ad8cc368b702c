r"""Ablations of Drift-AR on NextStep-1: each arm changes one thing of `reference`.

python -m driftar_jax.ablate --sweep=configs/sweeps/nextstep_small.py:emoji32 --out=runs/next_arms

Tokens come one by one, so that entropies cannot be shuffled and masks have no law.

Measured: nothing yet; an image takes 64 AR steps, so that sampling is most of an arm's cost.
"""

from configs import nextstep_small

REFERENCE = "reference"


def get_sweep(size: str = "emoji32") -> dict:
    """What `driftar_jax.evaluation.sweep` reads; `size` is the word after the colon."""
    if size not in nextstep_small.SIZES:
        raise ValueError(f"sweep size: got {size!r}, allowed {' | '.join(nextstep_small.SIZES)}")
    own, steps = (600, 300) if size == "emoji32" else (4, 5)
    saves = "train.keep=1", "train.checkpoint_every=100", "train.sample_every=0"
    short = (*saves, f"train.steps={steps}", f"optim.warmup_steps={max(steps // 10, 1)}")
    drafts = dict(gamma=2, rule="gaussian")

    def arm(question, *changes, **more):
        return dict(
            question=question,
            config=f"configs/drift_nextstep.py:{size}",
            set=(*short, "drift.guidance_max=1", *changes),
            needs={"init_from": "own"},
            **more,
        )

    arms = {
        "own": dict(
            question="own head",
            config=f"configs/nextstep_small.py:{size}",
            set=(*saves, f"train.steps={own}"),
        ),
        REFERENCE: arm("", drafts=drafts, timed=True),
        "draft entropy none": arm("entropy loss", "loss.entropy_loss=none", drafts=drafts),
        "draft entropy maximize": arm("entropy loss", "loss.entropy_loss=maximize", drafts=drafts),
        "sigma constant": arm(
            "sigma", "prior.scale=constant", measured={"prior.constant": (REFERENCE, "sigma_mean")}
        ),
        "sigma zero": arm("sigma", "prior.scale=constant", "prior.constant=0"),
        "sigma learned": arm("sigma", "prior.scale=learned"),
        "bare start": arm("standardised start", "drift.standardised=false"),
        "one phase": arm("phases", "loss.freeze_at=1"),
        "width 384": arm("decoder width", "drift.width=384", timed=True),
        "G 2": arm("draws", "drift.draws=2"),
        "G 8": arm("draws", "drift.draws=8"),
    }
    for rule, delta in (("gaussian", 0.0), ("coupled", 2.0), ("feature", 0.1)):
        name = rule if rule == "gaussian" else f"{rule} {delta:g}"
        sample = {**drafts, "rule": rule, "delta": delta}
        arms[name] = dict(question="verification rule", of=REFERENCE, sample=sample)
    return dict(
        seeds=(0, 1, 2),
        images=256 if size == "emoji32" else 16,
        judge=dict(config=f"configs/classifier.py:{size}", set=("train.keep=1",)),
        reference=REFERENCE,
        arms=arms,
    )
