"""The test command's workers."""

import os

import pytest


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="one process runs everything")
def test_a_worker_takes_whole_files(request):
    assert request.node.nodeid.endswith("@test_workers")  # how xdist names what it keeps together
