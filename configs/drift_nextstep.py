r"""Drift-AR on NextStep-1 at a small size: one head evaluation per token, guidance trained in.

python -m driftar_jax.train --config=configs/drift_nextstep.py:emoji32 \
    --config.init_from=runs/next_emoji32 --workdir=runs/drift_next_emoji32
"""

import ml_collections

from configs import nextstep_small


def get_config(size: str = "emoji32") -> ml_collections.ConfigDict:
    """Everything a run needs; `size` is the word after the colon."""
    c = nextstep_small.generative("drift", size)
    c.prior = dict(scale="entropy", sigma_max=0.5, tau=2.0, constant=0.25)  # Eq. 6
    c.drift = dict(
        field="energy",
        draws=4,
        width=192,
        depth=3,
        standardised=True,
        guidance_max=3.0,  # scales up to it are trained into the decoder
        backbone="joint",  # or frozen: that of init_from stays
        repulsion=1.0,  # of the draws; above 1 they spread wider than the data
        repulsion_schedule="constant",  # or annealed: to 1 at the last step
    )
    c.draft = dict(width=64, depth=1, num_heads=4)
    c.loss = dict(entropy_loss="match", alpha_start=0.95, freeze_at=0.8)  # Eq. 9-10
    c.sample.update(nfe=1, gamma=0, rule="gaussian", delta=1.0)  # gamma 0: without drafts
    if size == "emoji64":
        c.train.steps = 2500  # from a host that is trained
    if size == "tiny":
        c.drift.update(width=16, depth=1, draws=2)
        c.draft.update(width=16, num_heads=2)
    return c
