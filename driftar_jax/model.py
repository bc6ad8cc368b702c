"""The modules of a run, built from its config: the one place where names become modules."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from driftar_jax import hosts, seeds
from driftar_jax.config import PUBLISHED, flatten
from driftar_jax.hosts.base import Family, ImageSpec, Model
from driftar_jax.hosts.fields import has_own_head

# What is folded into the key of a fresh run for each group; the host takes the key itself.
_FOLDS = {"host": None, "head": 1, "prior": 2, "decoder": 3, "draft": 4}


def family_of(config: Any) -> Family:
    """Return the family of a config's host; that of published models is TransDiff's."""
    return hosts.family("transdiff" if config.task == PUBLISHED else config.host.name)


def build(config: Any, images: ImageSpec) -> Model:
    """Build the modules of a checked config of task host, drift or draft, or of a published model.

    A run of task `host` has the host's own head; the others have prior, decoder and, where groups
    of the host can be drafted, a draft head, and keep the own head beside them if the drift asks
    it (`fields.has_own_head`).
    """
    family = family_of(config)
    if config.task == PUBLISHED:
        # Imported where they are wanted: sampling a run needs neither these nor those below.
        from driftar_jax.published import stored
        from driftar_jax.published.model import sampled_parts

        host, prior, decoder = sampled_parts(stored.module(config))
        return Model(images, host, family, prior=prior, decoder=decoder)
    host = family.backbone(config, images)
    if config.task == "host":
        return Model(images, host, family, head=family.own_head(config, images))
    return Model(
        images,
        host,
        family,
        prior=_prior(config, images),
        decoder=_decoder(config, images, family),
        draft=_draft(config, images) if family.drafts else None,
        head=family.own_head(config, images) if has_own_head(flatten(config)) else None,
    )


def _prior(config: Any, images: ImageSpec) -> nn.Module:
    from driftar_jax.drift.networks import Prior  # a host with its own head alone draws from none

    return Prior(
        token_dim=images.token_dim,
        sigma_max=config.prior.sigma_max,
        tau=config.prior.tau,
        scale=config.prior.scale,
        constant=config.prior.constant,
    )


def _decoder(config: Any, images: ImageSpec, family: Family) -> nn.Module:
    """Build the one-step decoder: of whole grids, or of single tokens."""
    fields = dict(
        token_dim=images.token_dim,
        width=config.drift.width,
        depth=config.drift.depth,
        standardised=config.drift.standardised,
        # Not in configs of older runs, as the one below.
        guidance=config.drift.get("guidance_max", 1.0) > 1,
        dtype=jnp.dtype(config.host.dtype),
    )
    if family.order == "grid":
        from driftar_jax.drift.grid import GridDecoder

        return GridDecoder(num_heads=config.drift.num_heads, **fields)
    from driftar_jax.drift.networks import TokenDecoder

    return TokenDecoder(entropy_adaln=config.drift.get("entropy_adaln", True), **fields)


def _draft(config: Any, images: ImageSpec) -> nn.Module:
    from driftar_jax.heads.draft import DraftHead  # hosts of whole grids have none

    return DraftHead(
        token_dim=images.token_dim,
        features=config.host.width,
        width=config.draft.width,
        depth=config.draft.depth,
        num_heads=config.draft.num_heads,
        dtype=jnp.dtype(config.host.dtype),
    )


def init(model: Model, key: jax.Array) -> dict[str, Any]:
    """Make fresh parameters of every module, by group, boxed with their logical axes."""
    examples = {**_examples(model), **model.family.examples(model)}
    keys = _keys(model, key)
    return {name: examples[name](keys[name])["params"] for name in keys}


def _keys(model: Model, key: jax.Array) -> dict[str, jax.Array]:
    """Return a key for every group that the model has."""
    groups = [name for name in _FOLDS if getattr(model, name) is not None]
    if model.family.order == "grid" and model.decoder is not None:
        # As runs of whole grids have always begun: a change would change every fresh run.
        return dict(zip(groups, jax.random.split(key, 3), strict=True))
    folds = {name: _FOLDS[name] for name in groups}
    return {n: key if fold is None else jax.random.fold_in(key, fold) for n, fold in folds.items()}


def _examples(model: Model):
    """Return `key -> variables` of prior and decoder, which know no host."""
    n, width = model.images.num_tokens, model.host.width

    def prior(key):
        # One key for each image: `prior.scale=shuffled` swaps entropies inside it.
        keys = jax.random.split(key, 1)
        return model.prior.init(key, jnp.zeros((1, n, width)), jnp.zeros((1, n)), keys)

    def decoder(key):
        return model.decoder.init(key, *model.decoder.example(n, width))

    return {"prior": prior, "decoder": decoder}


def looped(model: Model, params: Mapping[str, Any]) -> dict[str, Any]:
    """Make one tree of the host's equal blocks (`layers.stacked`), as chips want to compile them.

    On CPUs they stay apart: compiling gains nothing there, and a call copies each block's weights.

    Args:
      model: modules of a run.
      params: its groups, arrays as they are stored.
    """
    if model.drafter is not None:
        params = {**params, "drafter": looped(model.drafter, params["drafter"])}
    loops, host = getattr(model.host, "loops", {}), params["host"]
    if not loops or not all(f"{name}_0" in host for name in loops):
        return dict(params)
    from driftar_jax.layers import stacked  # of such hosts alone, which bring it

    return {**params, "host": stacked.stack(host, loops)}


def apart(model: Model, params: Mapping[str, Any]) -> dict[str, Any]:
    """Take the layers of a causal host apart where calls on one CPU gain by it (`causal.apart`).

    Args:
      model: modules of a run.
      params: its groups, arrays as they are stored.
    """
    take = getattr(model.host, "apart", None)
    return {**params, "host": take(params["host"])} if take else dict(params)


def shapes(config: Any, images: ImageSpec) -> dict[str, Any]:
    """Return the parameters of a checkpoint by group as `ShapeDtypeStruct`; nothing is run.

    Args:
      config: of any task that `train` knows, or of a published model.
      images: of its manifest.
    """
    if config.task == PUBLISHED:
        from driftar_jax.published import stored

        return stored.abstract(stored.module(config), config.phi)
    if config.task == "autoencoder":
        from driftar_jax.vae import stored as autoencoders

        return autoencoders.abstract(autoencoders.trained(config.autoencoder))
    if config.task in ("classifier", "mae"):
        module = _feature_network(config, images)
        # Of numpy: nothing is compiled to learn shapes.
        image = np.zeros((1, *images.image_shape), np.float32)

        def make(key):
            return {config.task: module.init(key, image)["params"]}
    else:
        modules = build(config, images)

        def make(key):
            return init(modules, key)

    tree = nn.meta.unbox(jax.eval_shape(make, seeds.key(0)))
    if rank := config.get("adapter", {}).get("rank", 0):
        from driftar_jax.layers import low_rank

        tree = tree | {low_rank.GROUP: low_rank.shapes(tree[low_rank.OF], rank)}
    return tree


def _feature_network(config: Any, images: ImageSpec) -> nn.Module:
    """Build the network to look through that a task trains."""
    from driftar_jax.features import classifier, mae

    if config.task == "mae":
        return mae.build(config, images.image_shape, images.num_classes)
    return classifier.build(config, images.num_classes)
