r"""Drift-AR on NextStep-1 at its released size: to see what a step would need.

python -m driftar_jax.scale --configs=configs/drift_nextstep_14b.py --devices=8 \
    --set=mesh.data=1,mesh.fsdp=8

Not trained by this project; the decoder is as large as the flow head it stands for.
"""

import ml_collections

from configs import drift_nextstep, nextstep_full


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Everything a run needs; `variant` is the word after the colon: nothing, or `tiny`."""
    c = drift_nextstep.get_config(nextstep_full.start(variant))
    if not variant:
        nextstep_full.enlarge(c)
        c.drift.update(draws=8, width=1536, depth=12, guidance_max=7.5)
        c.draft.update(width=1280, num_heads=10)
        c.sample.guidance = 7.5
    return c
