r"""What attracts a decoder on a frozen backbone: the real token, own-head draws, guided ones.

python -m driftar_jax.ablate --sweep=configs/sweeps/positives.py:fashion28 --out=runs/pull_7x7
python -m driftar_jax.ablate --sweep=configs/sweeps/positives.py:fashion28_4x4 --out=runs/pull_4x4

Two draws of ten evaluations for each token. The arms of the second question learn the guidance, up
to 3, and are sampled at 2 in one backbone row: by unconditional draws that repel (`guided`), or by
attraction to draws that the own head made at that scale. The own head is that of `backbone.py`.
"""

from configs.sweeps import arms as shared
from configs.sweeps import backbone

DRAWN = ("drift.own_positives=2", "drift.own_steps=10")


def get_sweep(size: str = "fashion28") -> dict:
    """What `driftar_jax.sweeps.arms` reads; `size` is the word after the colon."""
    made = backbone.get_sweep(size)
    steps, few = backbone.STEPS[size]["own_positives"], size == "tiny"

    def arm(question, *changes, **more):
        return dict(
            question=question,
            config=f"configs/drift_mar_own.py:{size.removesuffix('_4x4')}",
            set=(
                *backbone.SIZES[size],
                *shared.short(steps, 100),
                "drift.backbone=frozen",
                *(DRAWN[:1] if few else DRAWN),
                *changes,
            ),
            needs={"init_from": "own"},
            **more,
        )

    def guided(*changes, **more):
        scale = dict(sample=dict(guidance=2.0, guidance_form="trained"), against="guided")
        return arm("guidance", "drift.guidance_max=3", *changes, **scale, **more)

    frozen = made["arms"]["frozen"]
    made["arms"] = {
        "own": made["arms"]["own"],
        shared.REFERENCE: {**frozen, "question": ""},
        "own draws": arm("positives"),
        "own draws and the real token": arm("positives", "drift.own_share=0.5"),
        "guided": {
            **frozen,
            "question": "guidance",
            "set": (*frozen["set"], "drift.guidance_max=3"),
            "sample": dict(guidance=2.0, guidance_form="trained"),
            "against": "guided",
        },
        "guided own draws": guided(),
        "guided own draws and the real token": guided("drift.own_share=0.5"),
    }
    return made
