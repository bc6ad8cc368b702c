r"""TransDiff with its own flow head on the small embedded sets: the baseline of whole-grid drift.

  python -m driftar_jax.train --config=configs/transdiff_small.py:digits8 --workdir=runs/td_digits8

Sizes that end in `_mrar` make four images of a class in a row, each from those before it; the last
one counts.
"""

import ml_collections

from configs import small

_ROW = "_mrar"


def get_config(size: str = "digits8") -> ml_collections.ConfigDict:
    """Everything a run needs; `size` is the word after the colon."""
    row = size.endswith(_ROW)
    data = size.removesuffix(_ROW)
    if data not in small.DATA:
        allowed = " | ".join([*small.DATA, *(name + _ROW for name in small.DATA)])
        raise ValueError(f"config size: got {size!r}, allowed {allowed}")
    c = small.base("host", data)
    c.train.update(held_out_every=0, judge="")
    c.adapter = dict(rank=0)  # of what learns beside each dense layer of the host; 0: none
    c.host = dict(
        name="transdiff",
        form="mrar" if row else "one_step",
        row_patch=2 if row else 1,  # side of the square of tokens behind one content row
        width=96,
        depth=4,
        num_heads=4,
        buffer_size=4,
        attention_dropout=0.0,
        projection_dropout=0.0,
        label_drop=0.1,
        dtype="float32",
        remat="none",  # of activations: dots | full; memory for time, same gradients
        scan=False,  # blocks as one loop in training, with remat: for TPUs
        attention="auto",  # by platform; or xla | cudnn | pallas
    )
    c.head = dict(depth=3, copies=4)
    if row:
        c.bank = dict(size=64, dtype="float32", limit_gib=1.0)
    c.sample = dict(
        ar_steps=4 if row else 1,
        nfe=100,  # as published
        nfe_schedule="constant",
        nfe_last=5,  # read by the other schedules: head steps of the last image in a row
        guidance=1.0,
        guidance_schedule="constant",
        temperature=1.0,  # factor of the step noise
        drift_scale=1.0,  # factor of the drift
    )
    if data == "tiny":
        c.host.update(width=16, depth=2, num_heads=2, buffer_size=2)
        c.head.update(depth=1, copies=2)
        c.sample.update(nfe=4, nfe_last=2)
    return c
