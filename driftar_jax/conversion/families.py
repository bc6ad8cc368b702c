"""The families of official checkpoints: how each is recognised, and what it becomes here."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from driftar_jax.conversion import (
    drift_ar,
    inception,
    mar,
    nextstep,
    nextstep_vae,
    rules,
    transdiff,
    vae,
)
from driftar_jax.features import inception as network
from driftar_jax.hosts import nextstep_stored
from driftar_jax.hosts.nextstep_stored import TASK, abstract_params, fields_of, modules, unstacked
from driftar_jax.published import stored as published
from driftar_jax.vae import stored


@dataclasses.dataclass(frozen=True)
class Described:
    """What one checkpoint turns out to be.

    Attributes:
      title: for a reader.
      config: of the workdir.
      manifest: facts stored beside the arrays.
      abstract: parameter tree of `ShapeDtypeStruct`.
    """

    title: str
    config: dict
    manifest: dict
    abstract: dict


@dataclasses.dataclass(frozen=True)
class Family:
    """How one family of checkpoints is recognised.

    Attributes:
      rules: names and transforms.
      describe: official name -> shape, and the number of heads where it is given, to `Described`;
        ValueError where it is another family.
      abstract: config and manifest of a workdir, to its abstract parameter tree.
      beside: whether `describe` also takes the `config.json` beside the official arrays.
      trees: abstract tree, to the parts of it that are read and written one after another, for
        what is larger than memory; None where it is written as one.
      dtype: of the arrays in the workdir; None keeps the file's.
      constants: config of a workdir, to official arrays that follow from it: they are compared
        where the file holds them, and written back.
      copied: official files beside the arrays that go into the workdir where they exist.
      averaged: the copy of the weights that is meant where none is named.
    """

    rules: Sequence[rules.Rule]
    describe: Callable[..., Described]
    abstract: Callable[[dict, dict], dict]
    beside: bool = False
    trees: Callable[[dict], dict[str, dict]] | None = None
    dtype: np.dtype | None = np.float32
    constants: Callable[[dict], dict[str, np.ndarray]] = lambda config: {}
    copied: tuple[str, ...] = ()
    averaged: str = "model_ema"


def _describe_mar(shapes: Mapping[str, tuple[int, ...]], num_heads: int | None) -> Described:
    fields = mar.sizes(shapes, num_heads)
    abstract = mar.abstract_params(*mar.modules(fields))
    return Described(mar.title(fields), mar.config_of(fields), rules.manifest_of(fields), abstract)


def _describe_transdiff(shapes: Mapping[str, tuple[int, ...]], num_heads: int | None) -> Described:
    fields = transdiff.sizes(shapes, num_heads)
    config, manifest = transdiff.config_of(fields), rules.manifest_of(fields)
    abstract = transdiff.abstract_params(*transdiff.modules(fields))
    return Described(transdiff.title(fields), config, manifest, abstract)


def _describe_drift_ar(shapes: Mapping[str, tuple[int, ...]], num_heads: int | None) -> Described:
    fields = drift_ar.sizes(shapes, num_heads)
    model = drift_ar.module(fields)
    return Described(
        drift_ar.title(fields),
        published.config_of(model, fields["phi"]),
        published.manifest_of(model),
        published.abstract(model, fields["phi"]),
    )


def _refuse_heads(num_heads: int | None) -> None:
    if num_heads is not None:
        raise ValueError(
            f"num_heads: got {num_heads}, allowed for mar, transdiff and drift_ar only"
        )


def _describe_vae(shapes: Mapping[str, tuple[int, ...]], num_heads: int | None) -> Described:
    _refuse_heads(num_heads)
    autoencoder = vae.module(shapes)
    config = stored.config_of(autoencoder)
    title = f"KL autoencoder, {autoencoder.latent_channels} channels at 1/{autoencoder.factor}"
    return Described(title, config, {"task": stored.TASK}, stored.abstract(autoencoder))


def _describe_inception(shapes: Mapping[str, tuple[int, ...]], num_heads: int | None) -> Described:
    _refuse_heads(num_heads)
    module = inception.module(shapes)
    config = network.config_of(module)
    title = f"InceptionV3, {module.num_classes} classes"
    return Described(title, config, {"task": network.TASK}, network.abstract(module))


def _describe_nextstep(
    shapes: Mapping[str, tuple[int, ...]], num_heads: int | None, settings: dict
) -> Described:
    _refuse_heads(num_heads)
    # A folder of another language model has the same names for all that is not the image's.
    if settings.get("model_type") != TASK:
        got = settings.get("model_type")
        raise ValueError(f"model_type: got {got!r}, allowed 'nextstep' in the source's config.json")
    fields = nextstep.sizes(shapes, settings)
    abstract = abstract_params(*modules(fields))
    manifest = {"task": TASK, "official": settings}
    config = nextstep.config_of(fields, settings)
    return Described(nextstep.title(fields), config, manifest, unstacked(abstract))


def _describe_f8(
    shapes: Mapping[str, tuple[int, ...]], num_heads: int | None, settings: dict
) -> Described:
    _refuse_heads(num_heads)
    autoencoder = nextstep_vae.module(shapes, settings)
    title = f"f8 autoencoder, {autoencoder.latent_channels} channels at 1/{autoencoder.factor}"
    config = stored.config_of(autoencoder)
    return Described(title, config, {"task": stored.TASK}, stored.abstract(autoencoder))


def _abstract_nextstep(config: dict, manifest: dict) -> dict:
    del manifest
    host_and_head = modules(fields_of(config))
    return unstacked(abstract_params(*host_and_head))


FAMILIES = {
    "mar": Family(
        mar.RULES,
        _describe_mar,
        lambda config, manifest: mar.abstract_params(*mar.modules(mar.fields_of(config, manifest))),
    ),
    "transdiff": Family(
        transdiff.RULES,
        _describe_transdiff,
        lambda config, manifest: transdiff.abstract_params(
            *transdiff.modules(transdiff.fields_of(config, manifest))
        ),
    ),
    "drift_ar": Family(
        drift_ar.RULES,
        _describe_drift_ar,
        lambda config, manifest: published.abstract(published.module(config), config["phi"]),
    ),
    "vae-kl16": Family(
        vae.RULES,
        _describe_vae,
        lambda config, manifest: stored.abstract(stored.module(config)),
        averaged="model",
    ),
    "inception": Family(
        inception.RULES,
        _describe_inception,
        lambda config, manifest: network.abstract(network.module_of(config)),
        averaged="model",
    ),
    "nextstep": Family(
        nextstep.RULES,
        _describe_nextstep,
        _abstract_nextstep,
        beside=True,
        trees=nextstep_stored.trees,
        dtype=None,
        constants=lambda config: {nextstep.BUFFER: nextstep.buffer(config["host"]["width"])},
        copied=("tokenizer.json",),
        averaged="model",
    ),
    "vae-f8": Family(
        nextstep_vae.RULES,
        _describe_f8,
        lambda config, manifest: stored.abstract(stored.module(config, kind="vae-f8")),
        beside=True,
        averaged="model",
    ),
}
