r"""How hard draws repel each other: the weight of the repulsive part of the drift.

python -m driftar_jax.ablate --sweep=configs/sweeps/repulsion.py:fashion28 --out=runs/rho_7x7
python -m driftar_jax.ablate --sweep=configs/sweeps/repulsion.py:fashion28_4x4 --out=runs/rho_4x4

The own head and `reference` are those of `backbone.py`.
"""

from configs.sweeps import arms as shared
from configs.sweeps import backbone


def get_sweep(size: str = "fashion28") -> dict:
    """What `driftar_jax.sweeps.arms` reads; `size` is the word after the colon."""
    made = backbone.get_sweep(size)
    reference = made["arms"][shared.REFERENCE]

    def arm(weight, schedule="constant"):
        weights = f"drift.repulsion={weight}", f"drift.repulsion_schedule={schedule}"
        return {**reference, "question": "repulsion", "set": (*reference["set"], *weights)}

    arms = {f"repulsion {weight:g}": arm(weight) for weight in (1.01, 1.02, 1.05, 1.1)}
    arms["repulsion 1.1 annealed"] = arm(1.1, "annealed")
    made["arms"] = {"own": made["arms"]["own"], shared.REFERENCE: reference, **arms}
    return made
