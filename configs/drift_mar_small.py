r"""Drift-AR on MAR for the small embedded sets: one head evaluation per AR step.

python -m driftar_jax.train --config=configs/drift_mar_small.py:digits8 --workdir=runs/drift_digits8
"""

import ml_collections

from configs import small


def get_config(size: str = "digits8") -> ml_collections.ConfigDict:
    """Everything a run needs; `size` is the word after the colon."""
    c = small.generative("drift", size)
    c.prior = dict(scale="entropy", sigma_max=0.5, tau=2.0, constant=0.25)  # Eq. 6
    c.drift = dict(
        field="energy",
        draws=4,
        width=256,
        depth=3,
        standardised=True,
        entropy_adaln=True,
        entropy_gradient=True,  # of the drift, through E, into the backbone
        guidance_max=1.0,  # above 1: scales up to it are trained into the decoder
        backbone="joint",  # or frozen: that of init_from stays
        repulsion=1.0,  # of the draws; above 1 they spread wider than the data
        repulsion_schedule="constant",  # or annealed: to 1 at the last step
    )
    c.draft = dict(width=96, depth=1, num_heads=4)
    c.loss = dict(entropy_loss="match", alpha_start=0.95, freeze_at=0.8)  # Eq. 9-10
    c.sample.update(gamma=0, rule="gaussian", delta=1.0)  # speculative decoding: 0 is without
    if size == "digits8":  # meant to start from a host: launch/quickstart.sh
        c.train.steps = 1200
        c.mask.tokens_per_image = 8
    if size == "tiny":
        c.drift.update(width=16, depth=1, draws=2)
        c.draft.update(width=16, num_heads=2)
    return c
