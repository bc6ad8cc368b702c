"""Imports go downwards: a file imports from lower storeys and its own package alone."""

import ast
import json
import pathlib
import re

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "driftar_jax"

PROGRAMS = ("train", "sample", "evaluate", "evaluate_drafts", "ablate", "deviation", "benchmark")
PROGRAMS += ("report", "convert", "encode", "export", "scale", "demo")
# Storey of each file, or of a whole folder.
STOREYS = {
    "seeds": 0,
    "types": 1,
    "config": 1,
    "sharding": 1,
    "entropy": 1,
    "storage": 0,
    "layers": 2,
    "data": 2,
    "targets": 2,
    "cli": 3,  # names the fields of the config in its messages
    "heads": 3,
    "drift": 3,
    "features": 3,
    "vae": 3,
    "hosts": 4,
    "published": 5,
    "model": 6,
    "sampling": 7,
    "training": 8,
    "conversion": 8,
    "evaluation": 9,
    "reports": 10,
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
# Modules of single hosts: others ask `hosts.family` and `hosts.base`.
HOSTS = {"mar", "mar_host", "mar_plain", "mar_plan", "mar_lazy", "mar_own", "mar_work"}
HOSTS |= {"mar_pair", "mar_recap"}
HOSTS |= {"mar_contexts", "transdiff", "transdiff_host"}
HOSTS |= {"transdiff_walk", "nextstep", "nextstep_host", "nextstep_own", "nextstep_contexts"}
HOSTS |= {"nextstep_encodings", "nextstep_plain", "nextstep_walk", "causal_walk"}
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


def _questions_about_hosts(path, source):
    """Where a file outside the hosts' rooms asks what host there is, or imports one."""
    if path.parts[0] in ("hosts", "conversion", "published"):
        return []
    found = []
    for name in _imported(ast.parse(source)):
        last = name.removeprefix("driftar_jax.hosts.").split(".")[0]
        if name.startswith("driftar_jax.hosts.") and last in HOSTS:
            found.append(f"{path} imports {name}")
    for number, line in enumerate(source.splitlines(), 1):
        if re.search(r"isinstance\([^)]*\b(host|decoder)\b", line):
            found.append(f"{path}:{number} tests the type of a host: {line.strip()}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nobody_else_asks_which_host_there_is(path):
    assert _questions_about_hosts(path.relative_to(PACKAGE), path.read_text()) == []


def test_a_question_about_the_host_is_named():
    source = "from driftar_jax.hosts import mar_host\nif isinstance(model.host, MAR): pass\n"
    assert len(_questions_about_hosts(pathlib.Path("sampling/plain.py"), source)) == 2
    assert _questions_about_hosts(pathlib.Path("hosts/mar_host.py"), source) == []


def test_counts_of_the_house():
    """Few files at the top, few storeys, few files that name the host with a text of its own."""
    assert len(list(PACKAGE.glob("*.py"))) <= 20
    assert len(set(STOREYS.values())) <= 12
    outside = [
        str(path.relative_to(PACKAGE))
        for path in FILES
        if path.relative_to(PACKAGE).parts[0] not in ("hosts", "conversion", "published")
        and re.search(r"NextStep|nextstep", path.read_text())
    ]
    assert len(outside) <= 6, outside


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_downwards(path):
    assert _violations(path.relative_to(PACKAGE), path.read_text()) == []


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("hosts/mar.py", "from driftar_jax.training import loop", "storey 4"),
        ("entropy.py", "def f():\n    from driftar_jax import layers", "storey 1"),
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


def test_the_package_alone_brings_nothing(python):
    done = python(
        "-c",
        "import sys, driftar_jax\n"
        "rooms = {name for name in sys.modules if name.startswith('driftar_jax.')}\n"
        "print(sorted(rooms | {'jax', 'numpy', 'flax', 'absl'} & {*sys.modules}))",
    )
    assert done.stdout.strip() == "[]", done.stderr


# What `load` may bring, whatever the model: a reader of its way opens no more files. An autoencoder
# between tokens and pixels is counted.
MOST_MODULES = 45
MODELS = sorted(
    path.parent.name
    for path in PACKAGE.parent.glob("models/*/config.json")
    if json.loads(path.read_text())["task"] != "autoencoder"
)
# The fewest and the most; the others come with the slow tests.
AT_ONCE = ("mar_fashion28_own", "nextstep_emoji64")


@pytest.mark.parametrize(
    "model", [pytest.param(m, marks=() if m in AT_ONCE else pytest.mark.slow) for m in MODELS]
)
def test_a_model_is_read_with_few_modules(python, model):
    _read_with_few_modules(python, f"'models/{model}'")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mar_fashion28", "transdiff_fashion28", "nextstep_emoji64"])
def test_an_export_of_each_family_is_read_with_few_modules(python, tmp_path, model):
    words = (f"--workdir=models/{model}", f"--out={tmp_path / model}", "--format=hub")
    done = python("-m", "driftar_jax.export", *words)
    assert done.returncode == 0, done.stderr
    vae = ", vae='models/vae_emoji64'" if model == "nextstep_emoji64" else ""
    _read_with_few_modules(python, f"{str(tmp_path / model)!r}, dtype='bfloat16'{vae}")


def _read_with_few_modules(python, arguments):
    """Call `load` in a process of its own, and count."""
    done = python(
        "-c",
        f"import sys, driftar_jax\nloaded = driftar_jax.load({arguments})\n"
        "assert loaded.to_pixels is not None\n"
        "print(*(name for name in sys.modules if name.split('.')[0] == 'driftar_jax'))",
    )
    names = done.stdout.split()
    assert "driftar_jax.sampling.generator" in names, done.stderr
    assert len(names) <= MOST_MODULES, sorted(names)
    assert not [name for name in names if name.startswith("driftar_jax.training")]
