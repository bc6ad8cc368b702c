"""The prior over the decoder's start, `N(mu, sigma^2 I)` with `mu = W z` (Eq. 6-7)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from driftar_jax import entropy as entropy_lib

# What sets sigma: Eq. 6, or one of the controls it is measured against.
SCALES = ("entropy", "constant", "shuffled", "learned")


class Prior(nn.Module):
    """Mean and standard deviation of the start, per token.

    `scale` picks sigma: `entropy` is Eq. 6; `constant` ignores the entropy; `shuffled` applies
    Eq. 6 to the image's own entropies in another place; `learned` is a small head on `z`.
    """

    token_dim: int
    sigma_max: float
    tau: float
    scale: str = "entropy"
    constant: float = 0.25

    def __call__(
        self, z: jax.Array, entropy: jax.Array, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Prior of every token.

        Args:
          z: `[B, N, D]` features.
          entropy: `[B, N]` float32 in [0, 1].
          key: `[B]` typed keys, one per image; needed by `shuffled` alone.

        Returns:
          mu `[B, N, C]` and sigma `[B, N]`, both float32.

        Raises:
          ValueError: an unknown `scale`, or `shuffled` without a key.
        """
        return self.of(z, shown(self.scale, entropy, key))

    @nn.compact
    def of(self, z: jax.Array, entropy: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the prior of some tokens, `z [B, M, D]`, from their entropies `shown [B, M]`."""
        kernel_init = nn.with_logical_partitioning(
            nn.initializers.xavier_uniform(), ("embed", None)
        )
        # float32 whatever the model's type: mu is where the decoder starts, and it is compared with
        # tokens.
        mu = nn.Dense(self.token_dim, dtype=jnp.float32, kernel_init=kernel_init, name="mean")(z)
        if self.scale == "constant":
            return mu, jnp.full(entropy.shape, self.constant, jnp.float32)
        if self.scale == "learned":
            logit = nn.Dense(
                1,
                dtype=jnp.float32,
                kernel_init=nn.with_logical_partitioning(
                    nn.initializers.zeros_init(), ("embed", None)
                ),
                name="scale",
            )(z)
            # A sigmoid of a zero kernel: it starts at half of sigma_max everywhere and stays in Eq.
            # 6's range.
            return mu, self.sigma_max * nn.sigmoid(logit[..., 0])
        return mu, entropy_lib.sigma(entropy, sigma_max=self.sigma_max, tau=self.tau)


def shown(scale: str, entropy: jax.Array, key: jax.Array | None) -> jax.Array:
    """Return the entropies `[B, N]` that sigma is made of: the image's own, in place or shuffled.

    Raises:
      ValueError: an unknown `scale`, or `shuffled` without a key.
    """
    if scale not in SCALES:
        raise ValueError(f"prior.scale: got {scale!r}, allowed {SCALES}")
    if scale != "shuffled":
        return entropy
    if key is None:
        raise ValueError("key: got None, allowed one key per image for prior.scale=shuffled")
    # A permutation within the image keeps the distribution of its sigmas and breaks only their tie
    # to the places, which is what the control has to tell apart.
    return jax.vmap(jax.random.permutation)(key, entropy)
