"""Settings of the generated tests: the same inputs in every run, no record of failures on disk."""

import pathlib
import sys

import hypothesis

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "conversion"))  # for torch_files

hypothesis.settings.register_profile(
    "reliability",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.load_profile("reliability")
