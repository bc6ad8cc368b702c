r"""MAR with its own many-step head on the small embedded sets: the baseline of Drift-AR.

python -m driftar_jax.train --config=configs/mar_small.py:digits8 --workdir=runs/mar_digits8
"""

import ml_collections

from configs import small


def get_config(size: str = "digits8") -> ml_collections.ConfigDict:
    """Everything a run needs; `size` is the word after the colon."""
    c = small.generative("host", size)
    c.head = dict(width=256, depth=3, copies=4)
    if size == "tiny":
        c.head.update(width=16, depth=1, copies=2)
    return c
