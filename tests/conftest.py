"""What every test gets: one device, strict broadcasting, data and compiled programs in folders.

Tests that need several devices start a process of their own (`several_devices`): XLA aborts the
whole process when a collective waits too long, and would take the other tests with it.
"""

import collections
import gc
import importlib.metadata
import os
import pathlib
import subprocess
import sys

# Read by XLA once, when jax starts: its CPU pool needs a live thread per simulated device.
os.environ.setdefault("NPROC", "32")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["DRIFTAR_COMPILE_CACHE"] = "off"  # jax's own variables name a folder, see below
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# Nearly all of a small test is XLA's compile time, which this halves; programs run slower.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
# XLA's older code for fusions compiles twice as fast; flags of the caller come after it and win.
# From 0.12 on it is gone, and XLA ends a process whose flags it does not know.
# A program in one part compiles in a fifth less CPU time than in 32; both cores are busy anyway.
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 12):
    cheaper = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{cheaper} {os.environ.get('XLA_FLAGS', '')}"
else:
    os.environ.setdefault("XLA_FLAGS", "")

import jax  # noqa: E402
import offline  # noqa: E402
import pytest  # noqa: E402

offline.start()

TESTS = pathlib.Path(__file__).parent
REPOSITORY = TESTS.parent
sys.path.insert(0, str(REPOSITORY))  # for `pytest` as well as for `python -m pytest`

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure():
    """Two test files of one name would keep each other from being collected."""
    names = collections.Counter(path.name for path in TESTS.rglob("test_*.py"))
    if twice := [name for name, count in names.items() if count > 1]:
        raise pytest.UsageError(f"tests: got two files called {twice}, allowed names of their own")


# Files that take longest, which begin first: the workers then end together.
LONGEST = ("end_to_end", "test_lookahead", "test_speculative", "test_sharding", "test_kills")
LONGEST += ("test_rows_of_devices", "test_same_images", "test_bfloat16", "test_causal_tasks")
LONGEST += ("test_autoencoder", "test_pixels", "test_tasks", "test_ends", "test_scale")
LONGEST += ("test_inception", "test_theory", "test_transdiff", "test_parity_transdiff")


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in this hook, and would be first
def pytest_collection_modifyitems(items):
    """A worker takes a whole file; all of end_to_end, whose runs are made once for the folder."""
    places = {}
    for item in items:
        together = item.path.parent.name == "end_to_end"
        group = "end_to_end" if together else item.path.stem
        places[item] = LONGEST.index(group) if group in LONGEST else len(LONGEST)
        item.add_marker(pytest.mark.xdist_group(group))
        if together:
            item.add_marker(pytest.mark.timeout(500))  # the first one waits for the runs
    items.sort(key=places.get)


def _of_all_workers(tmp_path_factory, name):
    """A folder of the session that its workers share."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name


@pytest.fixture(scope="session", autouse=True)
def data_dir(tmp_path_factory):
    """The data folder of the session: the embedded sets are prepared into it once.

    Workers may prepare a set at the same time: the first one that is whole is taken.
    """
    folder = _of_all_workers(tmp_path_factory, "tensorflow_datasets")
    folder.mkdir(exist_ok=True)
    os.environ["TFDS_DATA_DIR"] = str(folder)
    return str(folder)


@pytest.fixture(scope="session", autouse=True)
def compiled_programs(tmp_path_factory):
    """A folder of compiled programs, shared by all workers and the processes that tests start.

    One of the environment's own (JAX_COMPILATION_CACHE_DIR) is taken, and outlives the session.
    """
    folder = _of_all_workers(tmp_path_factory, "compiled")
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or folder
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.3,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


@pytest.fixture(scope="module", autouse=True)
def settled():
    """Compiled programs and traces stay: the collector need not visit those of past files again."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def python(data_dir, compiled_programs):
    """`python(*arguments, devices=1)` runs a Python process in the repository."""

    def start(*arguments, devices=1, timeout=300):
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": f"{REPOSITORY}:{TESTS}"},
            timeout=timeout,
        )

    return start
