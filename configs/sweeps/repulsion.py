r"""How hard draws repel each other: the weight of the repulsive part, on a frozen backbone.

python -m driftar_jax.ablate --sweep=configs/sweeps/repulsion.py:fashion28 --out=runs/rho_7x7
python -m driftar_jax.ablate --sweep=configs/sweeps/repulsion.py:fashion28_4x4 --out=runs/rho_4x4

The own head and `reference` are those of `backbone.py` (its arms `own` and `frozen`).
"""

from configs.sweeps import arms as shared
from configs.sweeps import backbone


def get_sweep(size: str = "fashion28") -> dict:
    """What `driftar_jax.sweeps.arms` reads; `size` is the word after the colon."""
    made = backbone.get_sweep(size)
    frozen = made["arms"]["frozen"]

    def arm(weight, schedule="constant"):
        weights = f"drift.repulsion={weight}", f"drift.repulsion_schedule={schedule}"
        return {**frozen, "question": "repulsion", "set": (*frozen["set"], *weights)}

    arms = {f"repulsion {weight:g}": arm(weight) for weight in (1.01, 1.02, 1.05)}
    arms["repulsion 1.05 annealed"] = arm(1.05, "annealed")
    made["arms"] = {
        "own": made["arms"]["own"],
        shared.REFERENCE: {**frozen, "question": ""},
        **arms,
    }
    return made
