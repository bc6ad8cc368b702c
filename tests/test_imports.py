"""Imports go downwards: a file imports from lower storeys and its own package alone."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "driftar_jax"

PROGRAMS = ("train", "sample", "evaluate", "evaluate_drafts", "ablate", "deviation", "benchmark")
PROGRAMS += ("report", "convert", "encode", "export", "scale")
# Storey of each file, or of a whole folder.
STOREYS = {
    "seeds": -1,
    "types": 0,
    "config": 0,
    "sharding": 0,
    "entropy": 0,
    "storage": -1,
    "layers": 1,
    "data": 1,
    "targets": 1,
    "cli": 1.5,  # names the fields of the config in its messages
    "heads": 2,
    "drift": 2,
    "features": 2,
    "vae": 2,
    "hosts": 3,
    "published": 4,
    "model": 5,
    "sampling": 6,
    "training": 7,
    "conversion": 7,
    "evaluation": 8,
    "reports": 9,
    "sweeps": 10,
    "__init__": 11,  # its `load` imports when it is called
    "__main__": 11,
    **dict.fromkeys(PROGRAMS, 11),
}
KEPT_APART = {
    "hosts": {"drift"},
    "drift": {"heads"},
    "heads": {"drift"},
    "conversion": {"training", "drift", "sampling", "data"},
    "evaluation": {"training"},
}
NOWHERE = {"tensorflow", "torch", "torchvision", "timm"}
FILES = sorted(PACKAGE.rglob("*.py"))


def _room(name):
    """`hosts` of `driftar_jax.hosts.mar`; None for the package itself."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else None


def _imported(tree):
    """Full names that a module imports, inside functions as well."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _violations(path, source):
    """What is wrong with the imports of `source`, if it stood at `path` of the package."""
    here = path.parts[0].removesuffix(".py")
    if here not in STOREYS:
        return [f"driftar_jax/{path} has no storey: add it to STOREYS of tests/test_imports.py"]
    found = []
    for name in _imported(ast.parse(source)):
        top, there = name.split(".")[0], _room(name)
        if top in NOWHERE:
            found.append(f"{path} imports {name}")
        if top != "driftar_jax" or there is None or there == here:
            continue
        if there not in STOREYS:
            found.append(f"{path} imports {name}, which has no storey in tests/test_imports.py")
        elif STOREYS[there] >= STOREYS[here]:
            found.append(f"{path} (storey {STOREYS[here]}) imports {name} ({STOREYS[there]})")
        elif there in KEPT_APART.get(here, ()):
            found.append(f"{path} imports {name}; {here} and {there} stay apart")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_downwards(path):
    assert _violations(path.relative_to(PACKAGE), path.read_text()) == []


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("hosts/mar.py", "from driftar_jax.training import loop", "storey 3"),
        ("entropy.py", "def f():\n    from driftar_jax import layers", "storey 0"),
        ("hosts/mar.py", "from driftar_jax.drift.fields import energy", "stay apart"),
        ("data/latents.py", "import torch.utils.data", "imports torch"),
        ("utils.py", "", "add it to STOREYS"),
        ("model.py", "from driftar_jax import helpers", "no storey"),
    ],
)
def test_a_wrong_import_is_named(path, source, complaint):
    found = _violations(pathlib.Path(path), source)
    assert len(found) == 1 and complaint in found[0]


def test_the_program_starts_without_slow_imports(python):
    slow = {"tensorflow", "torch", "matplotlib", "tensorflow_datasets"}
    done = python(
        "-c",
        f"import sys, driftar_jax.sampling.generator\nprint(sorted({slow} & {{*sys.modules}}))",
    )
    assert done.stdout.strip() == "[]", done.stderr
