"""Rule lists between official parameter names and our paths, and the report of every name.

A rule says *which name* goes where; its transform says *what happens to the value*. Both work
backwards, so that a converted checkpoint can be written out again bit by bit.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Transform:
    """What happens to a value on the way.

    Attributes:
      name: for the report.
      forward: `(official array, our shape) -> our array`; raises ValueError where sizes disagree.
      back: `our array -> official array`.
    """

    name: str
    forward: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
    back: Callable[[np.ndarray], np.ndarray]


SAME = Transform("same", lambda array, shape: array, lambda array: array)
# Tables with a leading axis of size 1 in the official file.
LEADING = Transform("leading", lambda array, shape: array.reshape(shape), lambda array: array[None])
# Linear: [out, in] <-> [in, out...]; our kernel may split `out` into several axes.
LINEAR = Transform(
    "linear",
    lambda array, shape: array.T.reshape((array.shape[1], *shape[1:])),
    lambda array: array.reshape(array.shape[0], -1).T,
)
# Bias whose one official axis is several of ours.
FLAT = Transform("flat", lambda array, shape: array.reshape(shape), lambda array: array.reshape(-1))
# Convolution: [out, in, kh, kw] <-> [kh, kw, in, out].
CONV = Transform(
    "conv",
    lambda array, shape: array.transpose(2, 3, 1, 0),
    lambda array: array.transpose(3, 2, 0, 1),
)
# 1x1 convolution as a linear layer: [out, in, 1, 1] <-> [in, out].
POINTWISE = Transform(
    "pointwise",
    lambda array, shape: array.reshape(array.shape[:2]).T,
    lambda array: array.T[:, :, None, None],
)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One family of names: `{i}`, `{j}` stand for numbers and must agree on both sides.

    Where `ours` is None the name is known and not needed.
    """

    official: str
    ours: str | None
    transform: Transform = SAME


def linear(official: str, ours: str) -> list[Rule]:
    """Return rules of a linear layer with bias."""
    return [
        Rule(f"{official}.weight", f"{ours}/kernel", LINEAR),
        Rule(f"{official}.bias", f"{ours}/bias", FLAT),
    ]


def norm(official: str, ours: str) -> list[Rule]:
    """Return rules of a norm with scale and shift."""
    return [Rule(f"{official}.weight", f"{ours}/scale"), Rule(f"{official}.bias", f"{ours}/bias")]


def block(official: str, ours: str) -> list[Rule]:
    """Return rules of a `layers.blocks.TransformerBlock` under timm's names."""
    return [
        *norm(f"{official}.norm1", f"{ours}/norm1"),
        *linear(f"{official}.attn.qkv", f"{ours}/qkv"),
        *linear(f"{official}.attn.proj", f"{ours}/proj"),
        *norm(f"{official}.norm2", f"{ours}/norm2"),
        *linear(f"{official}.mlp.fc1", f"{ours}/fc1"),
        *linear(f"{official}.mlp.fc2", f"{ours}/fc2"),
    ]


def modulated_block(official: str, ours: str) -> list[Rule]:
    """Return rules of a `layers.modulated.ModulatedBlock` under TransDiff's names."""
    return [
        Rule(f"{official}.scale_shift_table", f"{ours}/table", LEADING),
        *norm(f"{official}.norm1", f"{ours}/norm1"),
        *linear(f"{official}.attn1.qkv", f"{ours}/qkv"),
        *linear(f"{official}.attn1.proj", f"{ours}/proj"),
        *norm(f"{official}.norm2", f"{ours}/norm2"),
        *linear(f"{official}.attn2.wq", f"{ours}/cross_q"),
        *linear(f"{official}.attn2.wk", f"{ours}/cross_k"),
        *linear(f"{official}.attn2.wv", f"{ours}/cross_v"),
        *linear(f"{official}.attn2.proj", f"{ours}/cross_proj"),
        *norm(f"{official}.norm3", f"{ours}/norm3"),
        *linear(f"{official}.mlp.fc1", f"{ours}/fc1"),
        *linear(f"{official}.mlp.fc2", f"{ours}/fc2"),
    ]


def conv(official: str, ours: str, transform: Transform = CONV) -> list[Rule]:
    """Return rules of a convolution with bias."""
    return [
        Rule(f"{official}.weight", f"{ours}/kernel", transform),
        Rule(f"{official}.bias", f"{ours}/bias"),
    ]


@dataclasses.dataclass
class Report:
    """Where every name went.

    Attributes:
      mapped: (official name, our path, transform) of everything that fits.
      unused: official names without a rule or without a place.
      missing: our paths that nothing filled.
      wrong_shape: (official name, its shape, our path, shape wanted there).
      not_finite: official names that hold NaN or infinity.
      dropped: official names that are known and not needed.
    """

    mapped: list[tuple[str, str, Transform]] = dataclasses.field(default_factory=list)
    unused: list[str] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)
    wrong_shape: list[tuple[str, tuple, str, tuple]] = dataclasses.field(default_factory=list)
    not_finite: list[str] = dataclasses.field(default_factory=list)
    dropped: list[str] = dataclasses.field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Check that every official name is used, every parameter filled and every shape right."""
        return not (self.unused or self.missing or self.wrong_shape)

    def problems(self) -> list[str]:
        """Return one line per name that stands in the way."""
        lines = [f"unused: {name}" for name in self.unused]
        lines += [f"missing: {path}" for path in self.missing]
        for name, got, path, want in self.wrong_shape:
            lines.append(f"wrong shape: {name} {list(got)}, allowed {list(want)} for {path}")
        return lines

    def check(self) -> None:
        """Raise ValueError, one line with the counts and the first names, unless complete."""
        if self.complete:
            return
        lines = self.problems()
        more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
        raise ValueError(f"checkpoint: got names that do not fit ({'; '.join(lines[:3])}{more})")


def _pattern(template: str) -> re.Pattern:
    parts = re.split(r"(\{\w+\})", template)
    return re.compile(
        # Numbers without leading zeros: `block.01` is another name than `block.1`, and both would
        # become one.
        "".join(rf"(?P<{p[1:-1]}>0|[1-9]\d*)" if p.startswith("{") else re.escape(p) for p in parts)
    )


class _Names:
    """Looks names up in one direction of a rule list."""

    def __init__(self, rules: Iterable[Rule], source: str, target: str):
        self._rules = [
            (_pattern(getattr(r, source)), getattr(r, target), r)
            for r in rules
            if getattr(r, source) is not None
        ]

    def __call__(self, name: str) -> tuple[str | None, Rule] | None:
        for pattern, template, rule in self._rules:
            match = pattern.fullmatch(name)
            if match:
                return template and template.format(**match.groupdict()), rule
        return None


# What wrappers put before every name, in any combination.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def unwrap(names: Iterable[str], rules: Sequence[Rule]) -> tuple[dict[str, str], str]:
    """Return names without what a trainer put before all of them.

    Parts that all names begin with are taken off while more of the rest then match a rule; the
    marks of `torch.compile` and of wrapped blocks are no part of any name and go wherever they are.

    Returns:
      name -> the name that rules know, and what was taken off the first of them.

    Raises:
      ValueError: two names become one.
    """
    find = _Names(rules, "official", "ours")
    plain = {name: ".".join(p for p in name.split(".") if p not in _WRAPPERS) for name in names}
    if len(set(plain.values())) != len(plain):
        raise ValueError("checkpoint: got two names that differ in _orig_mod alone, allowed one")
    # The cut that lets most names match wins, so that a prefix that is part of the official names
    # stays.
    known = lambda cut: sum(find(n[cut:]) is not None for n in plain.values())  # noqa: E731
    best, most, cut = 0, known(0), 0
    first = next(iter(plain.values()), "")
    while "." in first[cut:]:
        cut = first.index(".", cut) + 1
        if not all(name.startswith(first[:cut]) and len(name) > cut for name in plain.values()):
            break
        if (count := known(cut)) > most:
            best, most = cut, count
    plainer = {name: short[best:] for name, short in plain.items()}
    changed = next((name for name in plainer if plainer[name] != name), "")
    at_front = changed and changed.endswith(plainer[changed])
    return plainer, changed.removesuffix(plainer[changed]) if at_front else changed and "_orig_mod."


def check_known(names: Iterable[str], rules: Sequence[Rule]) -> None:
    """Refuse names of which the rules know none; the line shows what was found and expected.

    Raises:
      ValueError: one line.
    """
    find = _Names(rules, "official", "ours")
    names = list(names)
    if names and any(find(name) is not None for name in names):
        return
    examples = ", ".join(name[:60] for name in names[:3]) or "none"
    wanted = [re.sub(r"\{\w+\}", "0", rule.official) for rule in rules if rule.ours is not None]
    raise ValueError(
        f"checkpoint: got names such as {examples}, allowed such as {', '.join(wanted[:3])}"
    )


def plan(
    official: Mapping[str, tuple[int, ...]],
    rules: Sequence[Rule],
    shapes: Mapping[str, tuple[int, ...]],
) -> Report:
    """Return where every name would go, from shapes alone: nothing is read.

    Args:
      official: name -> shape.
      rules: of the family; the first that matches a name counts.
      shapes: our path -> shape, every parameter that must be filled.
    """
    find = _Names(rules, "official", "ours")
    report = Report()
    for name, shape in official.items():
        match = find(name)
        if match is not None and match[0] is None:
            report.dropped.append(name)
            continue
        if match is None or match[0] not in shapes:
            report.unused.append(name)
            continue
        path, rule = match
        want = tuple(shapes[path])
        # One number seen many times has any shape and no size.
        stand_in = np.broadcast_to(np.float32(0), shape)
        try:
            got = rule.transform.forward(stand_in, want).shape
        except (ValueError, IndexError):
            got = None
        if got == want:
            report.mapped.append((name, path, rule.transform))
        else:
            report.wrong_shape.append((name, tuple(shape), path, want))
    filled = {path for _, path, _ in report.mapped}
    filled |= {path for _, _, path, _ in report.wrong_shape}
    # A path whose array has the wrong shape is reported once, as that.
    report.missing = [path for path in shapes if path not in filled]
    return report


def to_ours(
    official: Mapping[str, np.ndarray],
    report: Report,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: np.dtype | None = np.float32,
    done: Callable[[], object] = lambda: None,
) -> dict[str, np.ndarray]:
    """Convert official arrays to ours, each read once; notes NaN and infinity in the report.

    Args:
      official: name -> array; may read lazily.
      report: of `plan`.
      shapes: our path -> shape.
      dtype: of the result; None keeps the file's.
      done: called after every array.

    Returns:
      path -> array of everything that fits. Nothing is invented: what is missing is
      missing here as well.
    """
    ours = {}
    for name, path, transform in report.mapped:
        value = transform.forward(np.asarray(official[name]), tuple(shapes[path]))
        # Transposed views become arrays of their own: the official one can then be let go.
        ours[path] = np.ascontiguousarray(value, dtype)
        if not np.isfinite(ours[path]).all():
            report.not_finite.append(name)
        done()
    return ours


def to_official(
    ours: Mapping[str, np.ndarray], rules: Sequence[Rule]
) -> tuple[dict[str, np.ndarray], Report]:
    """Return our arrays under their official names; the inverse of `to_ours`.

    Returns:
      name -> array, a view where that is possible, and a report in which `unused` holds our paths
      without a rule.
    """
    find = _Names(rules, "ours", "official")
    official, report = {}, Report()
    for path, array in ours.items():
        match = find(path)
        if match is None:
            report.unused.append(path)
            continue
        name, rule = match
        official[name] = rule.transform.back(np.asarray(array))
        report.mapped.append((name, path, rule.transform))
    return official, report


def flatten(tree: Mapping, prefix: str = "") -> dict:
    """Flatten a nested mapping to `{"a/b/c": leaf}`."""
    flat = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, path + "/"))
        else:
            flat[path] = value
    return flat


def shapes_of(tree: Mapping) -> dict[str, tuple[int, ...]]:
    """Return `{"a/b/c": shape}` of a nested mapping of arrays or `ShapeDtypeStruct`."""
    return {path: tuple(leaf.shape) for path, leaf in flatten(tree).items()}


def unflatten(flat: Mapping[str, np.ndarray]) -> dict:
    """Turn `{"a/b/c": leaf}` into nested dictionaries."""
    tree: dict = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def manifest_of(fields: Mapping) -> dict:
    """Return the facts of a workdir: the token grid as an image of patches of 1, classes by number.

    Raises:
      ValueError: the token grid is not square.
    """
    side = math.isqrt(fields["num_tokens"])
    if side**2 != fields["num_tokens"]:
        raise ValueError(f"num_tokens: got {fields['num_tokens']}, allowed square token grids")
    return {
        "task": "host",
        "image_shape": [side, side, fields["token_dim"]],
        "patch_size": 1,
        "class_names": [str(i) for i in range(fields["num_classes"])],
    }
