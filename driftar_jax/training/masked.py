"""The masked autoencoder as a task: what makes the feature space `mae` of the drift."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from driftar_jax import model
from driftar_jax.data.pixels import unpatchify
from driftar_jax.features import mae
from driftar_jax.training.tokens import tokenise


@dataclasses.dataclass(frozen=True)
class MaskedTask:
    """Fill masked 2x2 patches; late in the run, name the class as well.

    `L = (1 - a) L_recon + a CE`, where `a` is 0 until `label_from` of the run, then rises to
    `label_weight` over a third of what is left (arXiv 2602.04770, appendix A.3). The classifier
    sees the masked image.

    Attributes:
      module: the autoencoder.
      images: what the data decides.
      steps: length of the run.
      mask_share: probability of a patch to be masked.
      label_weight: largest `a`, in [0, 1]; 0 never reads a label.
      label_from: share of the run.
      mirror: of latents; pixels were mirrored when they were read.
    """

    module: mae.MAE
    images: model.ImageSpec
    steps: int
    mask_share: float = 0.5
    label_weight: float = 0.1
    label_from: float = 0.9
    mirror: bool = False
    freeze_step: None = None
    tracked: tuple[str, ...] = ()

    def init(self, key: jax.Array):
        """Return the fresh parameters, in one group."""
        image = jnp.zeros((1, *self.images.image_shape))
        return {"mae": self.module.init(key, image)["params"]}

    def trainable(self, frozen: bool) -> tuple[str, ...]:
        """Return the groups that learn; there is one phase."""
        return ("mae",)

    def loss(self, params, batch, key, step, frozen):
        """Return the loss, a float32 scalar, and the metrics; see `Task.loss`."""
        patch = self.images.patch_size
        tokens = tokenise(batch, key, patch_size=patch, mirror=self.mirror)
        image = unpatchify(tokens, *self.images.image_shape[:2], patch)
        mask = mae.draw_mask(key, image.shape[:3], self.mask_share)
        visible = jnp.where(mask[..., None], 0.0, image)
        filled, logits = self.module.apply({"params": params["mae"]}, visible)
        recon = mae.reconstruction_loss(filled, image, mask).mean()
        label = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
        correct = (logits.argmax(axis=-1) == batch["label"]).astype(jnp.float32)
        begin = self.label_from * self.steps
        rise = jnp.clip((step - begin) / max((self.steps - begin) / 3.0, 1.0), 0.0, 1.0)
        a = self.label_weight * rise
        metrics = {"reconstruction": recon, "label": label, "accuracy": correct.mean()}
        return (1.0 - a) * recon + a * label, metrics | {"label_weight": a}


def module(config: Any, images: model.ImageSpec) -> mae.MAE:
    """Build the autoencoder of a checked config of task `mae`."""
    return mae.build(config, images.image_shape, images.num_classes)


def build(config: Any, images: model.ImageSpec) -> MaskedTask:
    """Build the task of a checked config."""
    return MaskedTask(
        module(config, images),
        images,
        steps=config.train.steps,
        label_from=config.mae.label_from,
        mirror=config.data.flip,
    )
