r"""TransDiff large (683 million parameters) with its own head, trained and sampled as published.

python -m driftar_jax.train --config=configs/transdiff_large.py --workdir=runs/transdiff_large

Not trained at this size by this project: take the released weights (`convert`).
"""

import ml_collections

from configs import transdiff_full


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Everything a run needs; `variant`, the word after the colon: nothing, mrar, 512 or tiny."""
    return transdiff_full.own_head("large", variant)
