r"""Drift-AR on MAR base: one head evaluation per AR step.

  python -m driftar_jax.train --config=configs/drift_mar_base.py \
    --config.init_from=runs/mar_base --workdir=runs/drift_mar_base

Not trained at this size by this project; rates and steps are a starting point, not a result.
"""

import ml_collections

from configs import mar_full


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Everything a run needs; `variant` is the word after the colon: nothing, or `tiny`."""
    return mar_full.drift("base", variant)
