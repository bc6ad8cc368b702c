"""The frozen pytrees that cross rooms. No logic lives here.

Letters, everywhere: `B` batch, `N` tokens, `C` token channels, `D` width, `H` heads, `Q` query rows
of a chunk, `G` draws per context, `P`/`M` positives/negatives, `T` AR steps.
"""

import flax.struct
import jax


@flax.struct.dataclass
class Encoding:
    """What one backbone call returns, all of it from one forward.

    Attributes:
      z: `[B, N, D]` floating; features that condition the head.
      entropy: `[B, N]` float32 in [0, 1]; Eq. 4, of the same call's own attention.
    """

    z: jax.Array
    entropy: jax.Array


@flax.struct.dataclass
class Counts:
    """What generating a batch cost, per image.

    Attributes:
      backbone_calls: int32 scalar; forwards of the backbone (a guided one counts once).
      head_evaluations: int32 scalar; sequential evaluations of the head or decoder.
      draft_calls: int32 scalar; forwards of the draft head.
      backbone_rows: int32 scalar; rows per image summed over backbone calls (two when guided).
    """

    backbone_calls: jax.Array
    head_evaluations: jax.Array
    draft_calls: jax.Array
    backbone_rows: jax.Array
