"""Sizes read from the shapes of a state dict; nothing of its values is needed."""

from collections.abc import Iterable, Mapping, Sequence


class Shapes:
    """Hold the shapes of a checkpoint, read by name.

    Args:
      shapes: official name -> shape.
      whose: the model, for messages.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], whose: str):
        self._shapes, self._whose = shapes, whose

    def __call__(self, name: str, ndim: int) -> tuple[int, ...]:
        """Shape of an array; raises ValueError where it is missing or has other axes."""
        got = self._shapes.get(name)
        if got is None or len(got) != ndim:
            raise ValueError(
                f"{name}: got {got}, allowed a {self._whose} checkpoint's {ndim}-axis array"
            )
        return got

    def depth(self, stack: str) -> int:
        """Count the blocks whose names begin with `stack`, which ends in a dot."""
        names = (name for name in self._shapes if name.startswith(stack))
        return len({name.removeprefix(stack).split(".")[0] for name in names})


def attention_heads(
    num_heads: int | None,
    fields: Mapping[str, int],
    presets: Iterable[Mapping[str, int]],
    alike: Sequence[str],
    sizes: str = "released",
) -> int:
    """Find the attention heads, which no shape shows.

    Args:
      num_heads: by the user; None takes those of the preset of the same sizes.
      fields: fields of the module, `width` among them.
      presets: the sizes whose heads are known.
      alike: fields in which a preset has to agree.
      sizes: what the presets are called, for messages.

    Raises:
      ValueError: they are not known, or do not divide the width.
    """
    width = fields["width"]
    if num_heads is None:
        same = [p for p in presets if all(p[field] == fields[field] for field in alike)]
        if not same:
            raise ValueError(
                f"num_heads: got none, allowed a divisor of width {width} "
                f"(known for the {sizes} sizes only)"
            )
        num_heads = same[0]["num_heads"]
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"num_heads: got {num_heads}, allowed a divisor of width {width}")
    return num_heads
