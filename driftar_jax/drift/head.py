"""Prior and drift decoder as one head: from features and noise to tokens, guidance included."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from driftar_jax import entropy
from driftar_jax.drift.networks import Prior, shown
from driftar_jax.types import Encoding


@dataclasses.dataclass(frozen=True)
class DriftHead:
    """Bind the one-step head to its parameters.

    A guided image has two rows, all conditional ones first; both start from the same noise.

    Attributes:
      prior, decoder: modules; without a decoder a token is the mean of its prior.
      params: groups `prior` and `decoder`.
      guided: whether rows come in pairs, `R = 2B`; else `R = B`.
      temperature: factor of the start's noise.
      trained_guidance: the decoder takes the scale as an input, and no rows come in pairs for it.
    """

    prior: Prior
    decoder: nn.Module | None
    params: dict[str, Any]
    guided: bool
    temperature: float
    trained_guidance: bool = False

    def starts(self, encoding: Encoding, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the prior of every token: mu `[R, N, C]` and sigma `[R, N]` of an encoding of R
        rows.

        Args:
          encoding: `z [R, N, D]`, `entropy [R, N]`.
          keys: `[B]` keys, one per image; read by `prior.scale=shuffled` alone.
        """
        return self.starts_of(encoding.z, self.shown(encoding.entropy, keys))

    def shown(self, entropy: jax.Array, keys: jax.Array) -> jax.Array:
        """Return entropies that sigma is made of, `[R, N]`; `keys` as in `starts`."""
        # Both branches of an image are shuffled alike.
        keys = jnp.concatenate([keys] * (2 if self.guided else 1))
        return shown(self.prior.scale, entropy, keys)

    def starts_of(self, z: jax.Array, entropy: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the prior of some tokens, `z [R, M, D]`, from their entropies `shown [R, M]`."""
        return self.prior.apply({"params": self.params["prior"]}, z, entropy, method="of")

    def tokens(
        self,
        encoding: Encoding,
        mu: jax.Array,
        std: jax.Array,
        eps: jax.Array,
        scale: jax.Array,
    ) -> jax.Array:
        """Return the new tokens `[B, M, C]` float32.

        Args:
          encoding: of the tokens, `z [R, M, D]`, `entropy [R, M]`.
          mu, std: their priors, `[R, M, C]` and `[R, M]`.
          eps: `[B, M, C]` standard normal.
          scale: guidance, a scalar or `[B]`; not read without it.
        """
        if self.decoder is None:
            new = mu
        else:
            eps = self.temperature * jnp.concatenate([eps] * (2 if self.guided else 1))
            # Each branch has its own prior and the same noise: their difference is then the
            # condition's.
            x0 = entropy.prior_draw(mu, std, eps)
            variables = {"params": self.params["decoder"]}
            inputs = x0[:, :, None], mu, std, encoding.z, encoding.entropy, self._alpha(scale, std)
            # An axis of one draw: decoders take G draws per token in training, and one here.
            new = self.decoder.apply(variables, *inputs)[:, :, 0]
        if not self.guided:
            return new
        conditional, unconditional = jnp.split(new, 2)
        # Rows of a batch may stand at different AR steps, hence at different scales.
        scale = jnp.broadcast_to(scale, conditional.shape[:1])[:, None, None]
        return unconditional + scale * (conditional - unconditional)

    def _alpha(self, scale, std):
        """What a decoder with a learned scale reads, 1 where it is not the guidance.

        `[R, M]` of tokens, or `[R]` where it makes the whole grid.
        """
        if not self.decoder.guidance:
            return None
        # A decoder that learned the scale still gets one where guidance comes from two branches:
        # applied in both places it would count twice.
        scale = scale if self.trained_guidance else jnp.float32(1)
        return self.decoder.scales(scale, std.shape)
