r"""NextStep-1 at its released size with its own flow head: to see what a step would need.

python -m driftar_jax.scale --configs=configs/nextstep_14b.py --devices=8 \
    --set=mesh.data=1,mesh.fsdp=8

Not trained by this project: take the released weights (`convert`). Batch and rates are round
figures for planning, not the published recipe.
"""

import ml_collections

from configs import nextstep_full, nextstep_small


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Everything a run needs; `variant` is the word after the colon: nothing, or `tiny`."""
    c = nextstep_small.get_config(nextstep_full.start(variant))
    if not variant:
        nextstep_full.enlarge(c)
        c.head.update(width=1536, depth=12, copies=4)
        c.sample.update(nfe=28, guidance=7.5)
    return c
