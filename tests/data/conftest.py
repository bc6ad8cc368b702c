"""One data folder for the session: the embedded sets are prepared into it once."""

import pytest

from driftar_jax.data import pipeline


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tensorflow_datasets"))


@pytest.fixture(scope="session")
def digits(data_dir):
    return pipeline.load_source("digits8", "test", data_dir=data_dir)
