r"""Drift-AR on NextStep-1 at its released size: to see what a step would need.

python -m driftar_jax.scale --configs=configs/drift_nextstep_14b.py --devices=8 \
    --set=mesh.data=1,mesh.fsdp=8

Not trained by this project; the decoder is as large as the flow head it stands for.
"""

import ml_collections

from configs import nextstep_full


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Everything a run needs; `variant` is the word after the colon: nothing, or `tiny`."""
    c = nextstep_full.generative("drift", variant)
    c.prior = dict(scale="entropy", sigma_max=0.5, tau=2.0, constant=0.25)  # Eq. 6
    c.drift = dict(
        field="energy",
        draws=8,
        width=1536,
        depth=12,
        standardised=True,
        guidance_max=7.5,  # scales up to it are trained into the decoder
    )
    c.draft = dict(width=1280, depth=1, num_heads=10)
    c.loss = dict(entropy_loss="match", alpha_start=0.95, freeze_at=0.8)  # Eq. 9-10
    c.sample.update(nfe=1, gamma=0, rule="gaussian", delta=1.0)  # gamma 0: without drafts
    if variant == "tiny":
        c.drift.update(width=16, depth=1, draws=2)
        c.draft.update(width=16, num_heads=2)
    return c
