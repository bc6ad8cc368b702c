r"""The small classifier whose features measure the small sets; a judge, not a generator.

python -m driftar_jax.train --config=configs/classifier.py:digits8 --workdir=runs/judge_digits8
"""

import ml_collections

from configs import small


def get_config(size: str = "digits8") -> ml_collections.ConfigDict:
    """Everything a run needs; `size` is the word after the colon."""
    c = small.base("classifier", size)
    c.classifier = dict(width=64)
    c.train.update(steps=1000 if size == "digits8" else 2000, sample_every=0)
    if size == "tiny":
        c.classifier.update(width=8)
        c.train.update(steps=6)
    return c
