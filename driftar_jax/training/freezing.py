"""Parameters that a run leaves as they are: by name, with no gradient, moment or average of them.

A parameter is named as in an export, `host.encoder.0.mlp.kernel`; `optim.freeze` holds globs of
such names, `host.*,head.*`.
"""

import fnmatch
from typing import Any

import jax
from flax import linen as nn

from driftar_jax.config import nearest, wrong

FIELD = "optim.freeze"
_SHOWN = 12  # names in a message


def globs(text: str) -> tuple[str, ...]:
    """Return the globs of the field's text."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def mask(params: Any, patterns: tuple[str, ...]) -> Any:
    """Return a tree of bool, True where a parameter is frozen; a box of one counts as a leaf."""

    def frozen(path, _):
        return any(fnmatch.fnmatchcase(_name(path), glob) for glob in patterns)

    return jax.tree_util.tree_map_with_path(frozen, params, is_leaf=_is_box)


def _is_box(node: Any) -> bool:
    return isinstance(node, nn.meta.AxisMetadata)


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def check(patterns: tuple[str, ...], params: Any, phases: tuple[tuple[str, ...], ...]) -> None:
    """Refuse globs that nothing matches, and such as leave a phase nothing to learn.

    Args:
      patterns: globs.
      params: by group, arrays or shapes, boxed or not.
      phases: the groups that learn in each phase of the task.

    Raises:
      ValueError: field, value, allowed; one line.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=_is_box)
    names = [_name(path) for path, _ in leaves]
    for glob in patterns:
        if not fnmatch.filter(names, glob):
            shown = ", ".join(names[:: max(1, len(names) // _SHOWN)])
            allowed = f"globs that name parameters, of {len(names)} such as {shown}"
            raise wrong(FIELD, glob, allowed + nearest(glob, names))
    left = [name for name in names if not any(fnmatch.fnmatchcase(name, g) for g in patterns)]
    for groups in phases:
        if not any(name.split(".")[0] in groups for name in left):
            allowed = f"globs that leave something of {', '.join(groups)} to learn"
            raise wrong(FIELD, ",".join(patterns), allowed)


def moving(held: Any, params: Any) -> Any:
    """Return `params` with None, which no transformation sees, where `held` is True."""
    return jax.tree.map(lambda stays, p: None if stays else p, held, params)


def merged(held: Any, fixed: Any, moved: Any) -> Any:
    """Return leaves of `fixed` where `held` is True, and of `moved` elsewhere."""
    return jax.tree.map(lambda stays, old, new: old if stays else new, held, fixed, moved)
