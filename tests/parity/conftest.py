"""What every parity test gets: exact matrix products, and a check that it read what it claims."""

import cases
import jax
import pytest


@pytest.fixture(autouse=True)
def _highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(autouse=True)
def _reads_what_it_claims(request):
    claims = getattr(request.function, "claims", None)
    if claims is None:
        yield
        return
    params = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    case = cases.load(request.function.case.format(**params))
    case.read.clear()
    yield
    wanted = set(case.claimed([pattern.format(**params) for pattern in claims]))
    assert not wanted - case.read, f"claimed but not read: {sorted(wanted - case.read)}"


# Long recordings whose shorter ones hold the same code; `parametrize` here takes plain names alone.
SLOW = ("test_sampling[transdiff_mrar]", "test_training_loss_and_gradients[transdiff_mrar]")
SLOW += ("test_complete_run[cspd-run_plain]", "test_complete_run[cspd-run_cfg]")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.name in SLOW:
            item.add_marker(pytest.mark.slow)
