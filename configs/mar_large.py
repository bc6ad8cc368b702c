r"""MAR large (478 million parameters) with its own head, trained and sampled as published.

python -m driftar_jax.train --config=configs/mar_large.py --workdir=runs/mar_large

Not trained at this size by this project: take the released weights (`convert`).
"""

import ml_collections

from configs import mar_full


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Everything a run needs; `variant` is the word after the colon: nothing, or `tiny`."""
    return mar_full.own_head("large", variant)
