r"""The draft head alone, on a trained Drift-AR run of NextStep-1: the run itself does not move.

python -m driftar_jax.train --config=configs/draft_nextstep.py:emoji32 \
    --config.init_from=runs/drift_next_emoji32 --workdir=runs/draft_next_emoji32
"""

import ml_collections

from configs import drift_nextstep


def get_config(size: str = "emoji32") -> ml_collections.ConfigDict:
    """Everything a run needs; `size` is the word after the colon."""
    c = drift_nextstep.get_config(size)
    c.task = "draft"
    del c.adapter
    c.teacher = dict(
        unroll=2,  # tokens ahead that the head learns to go on its own predictions
        prior=1.0,  # weight of the divergence of the drafted prior, which is what acceptance reads
        fresh_head=False,  # True leaves the draft head of init_from aside
    )
    c.optim.ema = 0.99
    if size != "tiny":
        c.train.steps = 1000
    return c
