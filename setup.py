"""The packages of a wheel: those of `driftar_jax`, and the folder `configs` inside it."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["driftar_jax*"]),
        "driftar_jax.configs",
        "driftar_jax.configs.sweeps",
    ],
    package_dir={"driftar_jax.configs": "configs", "driftar_jax.configs.sweeps": "configs/sweeps"},
)
