"""What a program computes, counted in its jaxpr."""

import numpy as np


def operations(jaxpr):
    """Operations of all matrix products of a program without loops."""
    total = 0
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            # Branches are the same attention for several platforms.
            branches = value if isinstance(value, tuple) else (value,)
            inner = [getattr(branch, "jaxpr", branch) for branch in branches]
            total += max((operations(b) for b in inner if hasattr(b, "eqns")), default=0)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            depth = np.prod([left[axis] for axis in contracted])
            total += 2 * depth * np.prod(equation.outvars[0].aval.shape)
    return int(total)
