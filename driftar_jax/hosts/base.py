"""The two protocols of a host: `Family` answers for its kind, `Walk` for a batch of its images.

Everything outside `hosts/` asks these; nobody else knows which host there is. A new host is one
file with a `FAMILY` (a `BaseFamily`), and one line in `hosts/__init__.py`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from flax import linen as nn

from driftar_jax.config import Field, wrong
from driftar_jax.types import Encoding, Hole, TextSpec, Trace


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """What the data decides: `image_shape (H, W, C)`, the classes, the patch size, the captions."""

    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    patch_size: int
    text: TextSpec | None = None

    @property
    def num_classes(self) -> int:
        """Return how many classes there are."""
        return len(self.class_names)

    @property
    def edits(self) -> bool:
        """Say whether every image is made of a source picture, beside a caption."""
        return self.text is not None and self.text.source > 0

    @property
    def grid(self) -> tuple[int, int]:
        """Return rows and columns of tokens."""
        return self.image_shape[0] // self.patch_size, self.image_shape[1] // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Return N, the tokens of an image."""
        return self.grid[0] * self.grid[1]

    @property
    def token_dim(self) -> int:
        """Return C, the numbers of a token."""
        return self.image_shape[2] * self.patch_size**2


@dataclasses.dataclass(frozen=True)
class Model:
    """Hold a run's modules, and the family of its host. Static: hashed by the programs' caches.

    Attributes:
      images: what the data decided.
      host: the backbone.
      family: of the host.
      head: the host's own many-step head; of task `host`, and beside a one-step head on demand.
      prior, decoder: the one-step head of Drift-AR.
      draft: the draft head, where the host has one.
      drafter: another model of the same tokens, which drafts for this one (CSpD); its parameters
        are the group `drafter`.
    """

    images: ImageSpec
    host: nn.Module
    family: "Family"
    head: nn.Module | None = None
    prior: nn.Module | None = None
    decoder: nn.Module | None = None
    draft: nn.Module | None = None
    drafter: "Model | None" = None


class Head(Protocol):
    """Bind the one-step head to its parameters (`drift/head.py`).

    A guided image has two rows, all conditional ones first.

    Attributes:
      guided: whether rows come in pairs.
      temperature: factor of the start's noise.
    """

    guided: bool
    temperature: float

    def starts(self, encoding: Encoding, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return mu `[R, N, C]` and sigma `[R, N]` of every token's prior (Eq. 6)."""

    def shown(self, entropy: jax.Array, keys: jax.Array) -> jax.Array:
        """Return the entropies `[R, N]` that sigma is made of."""

    def starts_of(self, z: jax.Array, entropy: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return mu and sigma of some tokens, from their entropies of `shown`."""

    def tokens(self, encoding: Encoding, mu, std, eps, scale) -> jax.Array:
        """Return tokens `[B, M, C]` of the noise `eps [B, M, C]` (Eq. 7, then the decoder)."""


class Walk(Protocol):
    """A host and a batch of B images whose tokens come in T groups of at most K.

    What speculative decoding asks. Step k generates group k; its context is all groups before it.
    `step [B]` int32 differs from image to image; beyond T - 1 it stands for the last step, and
    nobody reads the result. Rows R of what it returns are the images, or for guided sampling all
    conditional rows and then all unconditional ones; what it is asked with is per image.

    An encoding has a place for every token that the host encodes together with a context: all N for
    a host that sees the whole grid, one group for a host that reads the next one. Only `take` knows
    which.

    Attributes:
      num_steps: T.
      group_size: K, the largest group.
      num_tokens: N.
      token_dim: C.
      branches: rows per image, 2 when guided, else 1.
      above: the first guess of a group is what stands so many groups before it: the token above, in
        raster order. Asked of the same hosts as `own`.
    """

    num_steps: int
    group_size: int
    num_tokens: int
    token_dim: int
    branches: int
    above: int

    def group(self, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return positions `[B, K]` int32 of each image's group, and which are real, `[B, K]`."""

    def known(self, step: jax.Array) -> jax.Array:
        """Return the tokens of the context of `step`, `[B, N]` bool."""

    def memory(self) -> Any:
        """Return what calls hand on (keys and values of a cache) as it is before the first."""

    def encode(
        self, memory: Any, tokens: jax.Array, step: jax.Array, contexts: int
    ) -> tuple[Encoding, Any]:
        """Call the backbone ONCE on the contexts of `step, step + 1, ..., step + contexts - 1`.

        Args:
          memory: of the last call, rolled back; or `memory()`.
          tokens: `[B, N, C]` float32, drafted ones included; what a context does not know is not
            read for it.
          step: `[B]`.
          contexts: S, static.

        Returns:
          `Encoding` with leading axes `[S, R, ...]`, and the memory.
        """

    def roll_back(self, memory: Any, step: jax.Array) -> Any:
        """Return `memory` as the context of `step [B]` may know it; shapes stay."""

    def take(self, tree: Any, step: jax.Array) -> Any:
        """Return the places of each image's group, `[R, K, ...]`, of arrays `[R, ...]`."""

    def read(self, encoding: Encoding) -> Encoding:
        """Return what head, prior and decoder see of an encoding."""

    def draft(self, last: Encoding, tokens: jax.Array, step: jax.Array) -> Encoding:
        """Return the draft head's guess of the encoding of the context of `step [B]`.

        Args:
          last: encoding of an earlier context, `[R, ...]`.
          tokens: `[B, N, C]`, drafted ones included.
          step: `[B]`.
        """

    def scales(self) -> jax.Array:
        """Return the guidance of each step, `[T]` float32."""

    def own(self, encoding: Encoding, step: jax.Array, keys: jax.Array) -> jax.Array:
        """Return what the host's own head makes of the group of `step [B]`, `[B, K, C]`.

        Asked of hosts that make one token after another.

        Args:
          encoding: of the context of the step, `[R, ...]`.
          step: `[B]`.
          keys: `[B, K]`, of the group's tokens (`randomness.token_keys`).
        """


class Family(Protocol):
    """One kind of host; a stateless object.

    Attributes:
      name: `host.name` of a config.
      order: how tokens are revealed: in `any` order, one after another (`raster`), or as a whole
        `grid`. Decides which decoder the one-step head has: one per token, or one per grid.
      drafts: whether its groups can be drafted.
      fields: its part of a config, by name.
      tasks: what can be trained on it, of host, drift and draft.
    """

    name: str
    order: str
    drafts: bool
    fields: Mapping[str, Field]
    tasks: tuple[str, ...]

    def backbone(self, config: Any, images: ImageSpec) -> nn.Module:
        """Build the host of a checked config."""

    def own_head(self, config: Any, images: ImageSpec) -> nn.Module:
        """Build the many-step head that the host was published with."""

    def examples(self, model: Model) -> dict[str, Callable[[jax.Array], Any]]:
        """Return, for every group that the model has, `key -> variables` that makes it fresh."""

    def check(self, flat: Mapping[str, Any], tokens: int) -> None:
        """Raise ValueError where values of a flat config of N tokens do not fit together."""

    def contexts(self, config: Any, model: Model) -> Any:
        """Return how the host meets images in training (`contexts.py`); None for whole grids."""

    def check_settings(self, settings: Any, model: Model) -> None:
        """Raise ValueError (field, value, allowed) where this host cannot sample so."""

    def check_conditions(self, model: Model, condition: Any) -> None:
        """Raise ValueError where these are no conditions of this host."""

    def prepare(self, model: Model, params: Any, rows: int) -> tuple[Any, float | None]:
        """Return parameters for a request of so many rows, and calls that its images share.

        The calls are None where every image makes its own.
        """

    def plain(
        self,
        model: Model,
        settings: Any,
        params: Mapping[str, Any],
        condition: Any,
        keys: jax.Array,
        head: Head | None,
        hole: Hole | None,
        trace: bool = False,
    ) -> jax.Array | Trace:
        """Generate all tokens `[B, N, C]`, all images in step; traced inside one jitted function.

        Args:
          model: modules.
          settings: checked `sampling.settings.Settings`.
          params: parameters by group.
          condition: of the batch, leaves `[B, ...]`.
          keys: `[B]`, of `randomness.image_keys`.
          head: the one-step head; None: the host's own.
          hole: tokens that stand, for hosts of any order.
          trace: return a `Trace` of them instead; not of hosts that make whole grids.
        """

    def paired(
        self,
        model: Model,
        settings: Any,
        params: Mapping[str, Any],
        condition: Any,
        keys: jax.Array,
        judge: Callable[..., tuple[jax.Array, jax.Array]],
    ) -> tuple[jax.Array, jax.Array]:
        """Generate by two models: `model.drafter` drafts, the model checks; hosts of any order
        alone.

        Args:
          model, settings, params, condition, keys: as for `plain`; params hold the group `drafter`.
          judge: `(x, draft, target, keys [B, M], real [M]) -> (passed [B, M], tokens [B, M, C])`,
            of drafts `x [B, M, C]` and what both models' reverse processes end in
            (`diffusion.LastStep`); `keys` are the tokens', and of a token that is not `real` nobody
            reads the verdict.

        Returns:
          Tokens `[B, N, C]`, and how many drafts of each AR step passed, `[B, T]` int32.
        """

    def rows(self, model: Model, settings: Any) -> int:
        """Return the backbone rows of an image with an accelerator; hosts of any order alone."""

    def work(self, model: Model, settings: Any) -> list[Any]:
        """Count what an image costs, with each accelerator, or with a draft model; hosts of any
        order alone.
        """

    def walk(
        self,
        model: Model,
        settings: Any,
        params: Mapping[str, Any],
        condition: Any,
        keys: jax.Array,
        contexts: int,
    ) -> Walk:
        """Bind the host to a batch; a call sees at most `contexts` contexts."""

    def pieces(
        self,
        model: Model,
        settings: Any,
        params: Any,
        condition: Any,
        index: jax.Array,
        head_of: Callable[[Any], Head | None],
    ) -> dict[str, tuple[Callable, tuple]]:
        """Return what can be timed apart: name -> (function of arrays, arrays). May be {}.

        `head_of` binds the one-step head to parameters.
        """

    def own_draws(
        self, model: Model, settings: Any, params: Any, z: jax.Array, noise: Callable, **guided: Any
    ) -> jax.Array:
        """Return draws `[R, C]` of the own head for features `z [R, D]`; hosts of any order alone.

        `noise` is `step -> [R, C]`, standard normal; `guided` is empty, or `guidance [R, 1]` and
        `z_uncond [R, D]`.
        """

    def known_encoding(self, model: Model, params: Any, tokens, known, condition) -> Encoding:
        """Return the encoding, as head and prior read it, of contexts of known images.

        Args:
          model: modules.
          params: parameters by group.
          tokens: `[B, N, C]` float32.
          known: `[B, N]` bool; not read by hosts whose order decides what is known.
          condition: `[B, ...]`.
        """

    def has_token_entropy(self, model: Model) -> bool:
        """Say whether every token has an entropy of its own: not where one row is several."""


class BaseFamily:
    """What most families answer alike; each adds the rest of `Family`, and what differs."""

    def check_conditions(self, model: Model, condition: Any) -> None:
        """See `Family.check_conditions`: classes."""
        check_classes(model, condition)

    def prepare(self, model: Model, params: Any, rows: int) -> tuple[Any, float | None]:
        """See `Family.prepare`: nothing is shared."""
        return params, None

    def pieces(self, model: Model, settings: Any, params, condition, index, head_of):
        """See `Family.pieces`: none runs apart."""
        return {}

    def has_token_entropy(self, model: Model) -> bool:
        """See `Family.has_token_entropy`."""
        return True


def check_classes(model: Model, labels: Any) -> None:
    """Raise ValueError where these are no classes `[n]` of the model, at least one."""
    labels = np.asarray(labels, np.int32)
    most = model.images.num_classes - 1
    if labels.ndim != 1 or len(labels) == 0:
        raise ValueError(f"labels: got shape {labels.shape}, allowed at least one in one row")
    for label in labels[(labels < -1) | (labels > most)]:
        raise wrong("labels", int(label), f"0 to {most}, or -1 for none")
