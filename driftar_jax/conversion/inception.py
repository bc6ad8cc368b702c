"""InceptionV3 checkpoints of the Frechet inception distance: names and the module they describe.

Files: `weights-inception-2015-12-05-6726825d.pth` (torch-fidelity) and
`pt_inception-2015-12-05-6726825d.pth` (pytorch-fid), which hold the same numbers.
"""

from collections.abc import Mapping

from driftar_jax.conversion import rules as r
from driftar_jax.features import inception


def _unit(name: str) -> list[r.Rule]:
    ours = name.replace(".", "/")
    return [
        r.Rule(f"{name}.conv.weight", f"{ours}/conv/kernel", r.CONV),
        *r.norm(f"{name}.bn", f"{ours}/bn"),
        r.Rule(f"{name}.bn.running_mean", f"{ours}/bn/mean"),
        r.Rule(f"{name}.bn.running_var", f"{ours}/bn/var"),
        # Counts the batches of a training; PyTorch loads a file without it as well.
        r.Rule(f"{name}.bn.num_batches_tracked", None),
    ]


RULES = [
    *(rule for name in inception.unit_names() for rule in _unit(name)),
    r.Rule("fc.weight", "fc_kernel", r.LINEAR),
    r.Rule("fc.bias", "fc_bias"),
]


def module(shapes: Mapping[str, tuple[int, ...]]) -> inception.InceptionV3:
    """Build the module that a state dict describes.

    Args:
      shapes: official name -> shape.

    Raises:
      ValueError: the name that the number of classes is read from is missing.
    """
    shape = shapes.get("fc.weight", ())
    if len(shape) != 2:
        raise ValueError(f"fc.weight: got {shapes.get('fc.weight')}, allowed InceptionV3's [K, D]")
    return inception.InceptionV3(num_classes=shape[0])
