r"""TransDiff base (290 million parameters) with its own head, trained and sampled as published.

python -m driftar_jax.train --config=configs/transdiff_base.py --workdir=runs/transdiff_base

Not trained at this size by this project: take the released weights (`convert`).
"""

import ml_collections

from configs import transdiff_full


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Everything a run needs; `variant` is the word after the colon: nothing, `mrar` or `tiny`."""
    return transdiff_full.own_head("base", variant)
