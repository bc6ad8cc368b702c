r"""The draft head alone, on a trained Drift-AR checkpoint: speculative decoding stands on it.

python -m driftar_jax.train --config=configs/draft_mar_small.py:fashion28 \
    --config.init_from=runs/drift_fashion28 --workdir=runs/draft_fashion28
"""

import ml_collections

from configs import drift_mar_small


def get_config(size: str = "digits8") -> ml_collections.ConfigDict:
    """Everything a run needs; `size` is the word after the colon."""
    c = drift_mar_small.get_config(size)
    c.task = "draft"
    del c.adapter
    c.teacher = dict(
        unroll=2,  # AR steps ahead that the head learns to go on its own predictions
        prior=1.0,  # weight of the divergence of the drafted prior, which is what acceptance reads
        fresh_head=False,  # True leaves the draft head of init_from aside
    )
    c.optim.ema = 0.99
    if size != "tiny":
        c.train.steps = 1000
    return c
