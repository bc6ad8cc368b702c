"""Arms and settings that the sweeps share; a sweep file is beside this one."""

REFERENCE = "reference"
RULES = (("gaussian", 0.0), ("coupled", 2.0), ("feature", 0.1))


# Over 50 steps: the usual average over 200 still holds a fifth of the fresh weights after 300.
AVERAGE = "optim.ema=0.98"


def short(steps: int, checkpoint_every: int, *, shorten: bool = True) -> tuple[str, ...]:
    """Changes of a run that is measured at its end; `shorten`: warm-up and average as well."""
    saves = ("train.keep=1", f"train.checkpoint_every={checkpoint_every}", "train.sample_every=0")
    shorter = (f"optim.warmup_steps={max(steps // 10, 1)}", AVERAGE) if shorten else ()
    return (*saves, f"train.steps={steps}", *shorter)


def judge(size: str) -> dict:
    """The classifier whose features measure."""
    return dict(config=f"configs/classifier.py:{size}", set=("train.keep=1",))


def of_drift(arm, drafts: dict) -> dict:
    """The questions that are asked of Drift-AR on every host; `arm(question, *changes, **more)`."""
    mean_sigma = {"prior.constant": (REFERENCE, "sigma_mean")}
    return {
        REFERENCE: arm("", drafts=drafts, timed=True),
        "draft entropy none": arm("entropy loss", "loss.entropy_loss=none", drafts=drafts),
        "draft entropy maximize": arm("entropy loss", "loss.entropy_loss=maximize", drafts=drafts),
        "sigma constant": arm("sigma", "prior.scale=constant", measured=mean_sigma),
        "sigma zero": arm("sigma", "prior.scale=constant", "prior.constant=0"),
        "sigma learned": arm("sigma", "prior.scale=learned"),
        "bare start": arm("standardised start", "drift.standardised=false"),
        "one phase": arm("phases", "loss.freeze_at=1"),
        **{f"G {draws}": arm("draws", f"drift.draws={draws}") for draws in (2, 8)},
    }


def of_rules(drafts: dict) -> dict:
    """The reference sampled with every verification rule."""
    arms = {}
    for rule, delta in RULES:
        name = rule if rule == "gaussian" else f"{rule} {delta:g}"
        sample = {**drafts, "rule": rule, "delta": delta}
        arms[name] = dict(question="verification rule", of=REFERENCE, sample=sample)
    return arms
