r"""Drift-AR on MAR beside the host's own head, for the small embedded sets: both in one checkpoint.

The backbone learns from its own head's loss beside the drift; with `drift.backbone=frozen` it stays
that of `init_from`, and its head may draw what attracts the decoder (`drift.own_positives`), or
teach it by distribution matching, as DMD does (`drift.field=dmd`, a rival: docs/rivals.md).

python -m driftar_jax.train --config=configs/drift_mar_own.py:fashion28 \
    --config.init_from=runs/mar_fashion28 --workdir=runs/drift_own_fashion28
"""

import ml_collections

from configs import drift_mar_small, mar_small


def get_config(size: str = "digits8") -> ml_collections.ConfigDict:
    """Everything a run needs; `size` is the word after the colon."""
    c = drift_mar_small.get_config(size)
    c.head = mar_small.get_config(size).head
    c.drift.update(
        backbone="own_loss",
        own_weight=1.0,  # of the own head's loss, with backbone=own_loss
        own_positives=0,  # draws of the own head for each token, which attract beside the real one
        own_share=1.0,  # of the attraction that is theirs
        own_steps=25,  # evaluations of such a draw
        fake_rate=1.0,  # with field=dmd: learning rate of the head that follows the decoder
    )
    return c
