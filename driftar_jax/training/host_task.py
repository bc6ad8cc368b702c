"""A host trained with its own many-step head, as it was published."""

import dataclasses
from typing import Any

from driftar_jax import model
from driftar_jax.hosts.contexts import Contexts
from driftar_jax.training.drawn import Drawn
from driftar_jax.training.tokens import tokenise


@dataclasses.dataclass(frozen=True)
class HostTask(Drawn):
    """Task `host` of hosts that make single tokens; the loss is the host's.

    Attributes:
      contexts: how the host meets images.
      copies: times and noises of each token in a step; they share its encoding.
      mirror: of latents; pixels were mirrored when they were read.
    """

    contexts: Contexts
    copies: int
    mirror: bool = False
    freeze_step: None = None
    tracked: tuple[str, ...] = ()

    @property
    def parts(self):
        """Return the modules of the run."""
        return self.contexts.model

    def init(self, key):
        """See `Task.init`."""
        return model.init(self.parts, key)

    def trainable(self, frozen: bool) -> tuple[str, ...]:
        """See `Task.trainable`: the host and its own head."""
        return ("host", "head")

    def draw(self, batch, key, frozen):
        """See `Drawn.draw`: contexts, noise and times of `copies` looks at each token."""
        patch_size = self.parts.images.patch_size
        tokens = tokenise(batch, key, patch_size=patch_size, mirror=self.mirror)
        return self.contexts.draw_own(key, tokens, batch, self.copies)

    def terms(self, params, rows, totals, key, step, frozen):
        """See `Drawn.terms`: the published loss of the host."""
        return self.contexts.own_terms(params, rows, totals, key)


def build(config: Any, contexts: Contexts) -> HostTask:
    """Return the task of a checked config of task `host`."""
    return HostTask(contexts, copies=config.head.copies, mirror=config.data.flip)
