"""The optax chain, the weight-decay groups and the training state."""

from collections.abc import Collection
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from driftar_jax.training import freezing

# Groups whose parameters are never decayed: MAR decays nothing of its head (mar.md section 8.1).
UNDECAYED_GROUPS = ("head", "fake")
# Decay of AdamW's first moment: the value of all three published recipes.
B1 = 0.9


@flax.struct.dataclass
class TrainState:
    """Everything a run needs to go on exactly.

    Attributes:
      params: parameters by group.
      ema: their exponential moving average, float32; what sampling reads. Of groups that training
        alone needs there is none.
      opt_state: optax state.
      tracked: running means of the task's `tracked` metrics, float32 scalars.
      step: int32 scalar, steps done; keys are folded from it.
      extra: what a task keeps beside parameters (`step.OwnsExtra`), else None.
    """

    params: Any
    ema: Any
    opt_state: Any
    tracked: dict[str, jax.Array]
    step: jax.Array
    extra: Any = None


def decay_mask(params) -> Any:
    """Return True where weight decay acts: not on 1-d arrays, biases, or anything under a head."""

    def decayed(path, leaf):
        names = [getattr(part, "key", None) for part in path]
        # By name as well: the bias of queries, keys and values has an axis for each.
        return leaf.ndim > 1 and "bias" not in names and names[0] not in UNDECAYED_GROUPS

    return jax.tree_util.tree_map_with_path(decayed, params)


def learning_rate(lr: float, *, schedule: str, warmup_steps: int, steps: int) -> optax.Schedule:
    """Build a linear warm-up from 0, then `constant` or `cosine` down to 0 at the last step."""
    if schedule == "cosine":
        # The steps of the decay include the warm-up, and optax wants some of them to be left after
        # it: a run shorter than its warm-up must still be built.
        return optax.warmup_cosine_decay_schedule(
            0.0 if warmup_steps else lr, lr, warmup_steps, max(steps, warmup_steps + 1)
        )
    if not warmup_steps:
        return optax.constant_schedule(lr)
    return optax.warmup_constant_schedule(0.0, lr, warmup_steps)


def make_optimizer(
    optim: Any, steps: int, freeze: tuple[str, ...] = ()
) -> optax.GradientTransformation:
    """Make AdamW with global-norm clipping, from the `optim` section of a checked config.

    What `optim.freeze` names, or `freeze`, has no moments, and no share in the norm.
    """
    schedule = learning_rate(
        optim.lr, schedule=optim.schedule, warmup_steps=optim.warmup_steps, steps=steps
    )
    whole = optax.chain(
        # Clipped first: a norm taken after Adam's division would be that of the update, nearly
        # constant.
        optax.clip_by_global_norm(optim.clip),
        optax.adamw(
            schedule,
            b1=B1,
            b2=optim.b2,
            weight_decay=optim.weight_decay,
            mask=decay_mask,
        ),
    )
    patterns = (*freezing.globs(optim.get("freeze", "")), *freeze)
    if not patterns:
        return whole
    learns = lambda params: jax.tree.map(lambda f: not f, freezing.mask(params, patterns))  # noqa: E731
    return optax.masked(whole, learns)


def init_state(
    params,
    optimizer: optax.GradientTransformation,
    tracked,
    extra: Any = None,
    aside: Collection[str] = (),
) -> TrainState:
    """Return the state at step 0; the average starts as a copy of the parameters.

    `aside` are the groups that have no average.
    """
    averaged = {name: tree for name, tree in params.items() if name not in aside}
    return TrainState(
        params=params,
        # A copy: the state is donated, and one buffer cannot be given away twice.
        ema=jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), averaged),
        opt_state=optimizer.init(params),
        tracked={name: jnp.zeros((), jnp.float32) for name in tracked},
        step=jnp.zeros((), jnp.int32),
        extra=extra,
    )


def update_ema(ema, params, decay: float):
    """Return `decay * ema + (1 - decay) * params`, in float32."""
    # float32 even where parameters are not: with a decay of 0.9999 a step changes the average by
    # less than bfloat16 can show.
    return jax.tree.map(lambda e, p: decay * e + (1 - decay) * p.astype(jnp.float32), ema, params)
