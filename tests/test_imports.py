"""Imports go downwards: a file imports from lower storeys and its own package alone."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "driftar_jax"

# Storey of each file, or of a whole folder. A number between two storeys joins what stands there.
STOREYS = {
    "jsons": -1,
    "paths": -1,
    "types": 0,
    "config": 0,
    "sharding": 0,
    "checkpoints": 0,
    "locks": 0,
    "stopping": 0,
    "processes": 0.5,
    "tracing": 0.5,
    "pictures": 0,
    "journal": 0,
    "config_files": 0.5,
    "cli": 0.6,  # names the fields of the config in its messages
    "draws": 0.5,
    "entropy": 1,
    "features": 1,
    "inception": 1,
    "layers": 1.5,
    "causal": 1.7,
    "modulated": 1.7,
    "data": 1,
    "vae": 2,
    "heads": 2,
    "drift": 2,
    "hosts": 3,
    "speculative": 4,
    "assembly": 4.5,
    "plan": 4.5,
    "causal_sampler": 4.5,
    "text_sampler": 4.6,
    "grid_sampler": 4.7,
    "speculate": 4.7,
    "published": 4.3,
    "sampler_settings": 4.8,
    "sampler": 5,
    "training": 5,
    "gamma": 5.5,
    "generator": 6,
    "conversion": 6,
    "phi": 6.2,
    "prompted": 6.5,
    "runs": 6.5,
    "evaluation": 7,
    "scale": 7,
    "inpaint": 7,
    "sample_prompts": 7.5,
    "ablation": 7.5,
    "train": 8,
    "sample": 8,
    "evaluate": 8,
    "evaluate_drafts": 8,
    "ablate": 8,
    "deviation": 8,
    "report": 8,
    "convert": 8,
    "benchmark": 8,
    "encode": 8,
    "export": 8,
    "__main__": 8,
    "__init__": 9,  # its `load` imports when it is called
}
KEPT_APART = {
    "hosts": {"drift"},
    "drift": {"heads"},
    "heads": {"drift"},
    "conversion": {"training", "drift", "speculative", "data"},
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
        ("entropy.py", "def f():\n    from driftar_jax import layers", "storey 1"),
        ("hosts/mar.py", "from driftar_jax.drift.fields import energy", "stay apart"),
        ("data/latents.py", "import torch.utils.data", "imports torch"),
        ("utils.py", "", "add it to STOREYS"),
        ("runs.py", "from driftar_jax import helpers", "no storey"),
    ],
)
def test_a_wrong_import_is_named(path, source, complaint):
    found = _violations(pathlib.Path(path), source)
    assert len(found) == 1 and complaint in found[0]


def test_the_program_starts_without_slow_imports(python):
    slow = {"tensorflow", "torch", "matplotlib", "tensorflow_datasets"}
    done = python(
        "-c", f"import sys, driftar_jax.generator\nprint(sorted({slow} & {{*sys.modules}}))"
    )
    assert done.stdout.strip() == "[]", done.stderr
