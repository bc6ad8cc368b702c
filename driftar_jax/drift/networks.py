"""The networks of the one-step head: the prior of the start, and the decoders of single tokens.

The prior is `N(mu, sigma^2 I)` with `mu = W z` (Eq. 6-7); a decoder `x = g(x0, z, E)` adds a
residual to the start, in one evaluation.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from driftar_jax import entropy as entropy_lib
from driftar_jax.layers.dense import dense, layer_norm, sinusoid_features

# What sets sigma: Eq. 6, or one of the controls it is measured against.
SCALES = ("entropy", "constant", "shuffled", "learned")
# Below this the standardised start would be a ratio of rounding errors.
SIGMA_MIN = 1e-3


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
        """Return the prior of every token.

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


class EntropyAdaLNBlock(nn.Module):
    """Residual MLP block whose shift, scale and gate come from `z` and `E`.

    The modulation starts at zero, so a fresh block is the identity and a fresh decoder returns its
    start: training begins at the prior instead of at noise.
    """

    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array, cond: jax.Array) -> jax.Array:
        """Map `h [..., G, width]`, `cond [..., width]` of the tokens -> like `h`."""
        zeros = nn.initializers.zeros_init()
        # Conditions are per token and draws are not: the axis of size 1 broadcasts over the G
        # draws.
        modulation = dense(3 * self.width, ("mlp", "embed"), self.dtype, zeros, "modulation")(cond)
        shift, scale, gate = jnp.split(modulation[..., None, :], 3, axis=-1)
        y = layer_norm(affine=False, name="norm")(h)
        y = (y * (1 + scale) + shift).astype(self.dtype)
        y = dense(self.width, ("embed", "mlp"), self.dtype, name="up")(y)
        y = dense(self.width, ("mlp", "embed"), self.dtype, name="down")(nn.silu(y))
        return h + gate * y


class TokenDecoder(nn.Module):
    """Residual MLP with Entropy-AdaLN, per token; no token sees another.

    It reads the start twice, as `x0` and standardised: where sigma is small the noise in `x0` is
    too faint to use, and training would bend the entropy into a volume knob for it. With
    `guidance` it takes a guidance scale, so that sampling needs no unconditional branch. Without
    `entropy_adaln`, the control, `z` alone modulates it.
    """

    token_dim: int
    width: int
    depth: int
    standardised: bool = True
    guidance: bool = False
    entropy_adaln: bool = True
    dtype: jnp.dtype = jnp.float32

    def scales(self, scale: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Return guidance scales, a scalar or `[B]`, for every token of `shape` (R, M)."""
        return jnp.broadcast_to(jnp.reshape(scale, (-1, 1)), shape)

    def example(self, num_tokens: int, width: int) -> tuple[jax.Array | None, ...]:
        """Return arguments of `__call__` for features of `width`, to make parameters with."""
        return example(self, num_tokens, width)

    @nn.compact
    def __call__(
        self,
        x0: jax.Array,
        mu: jax.Array,
        std: jax.Array,
        z: jax.Array,
        entropy: jax.Array,
        alpha: jax.Array | None = None,
    ) -> jax.Array:
        """Decode G starts per token in one evaluation.

        Args:
          x0: `[..., G, C]` float32 starts, `mu + std * eps` (Eq. 7).
          mu: `[..., C]` float32 prior means.
          std: `[...]` float32 standard deviations of the prior.
          z: `[..., D]` features; conditioning is computed once per token and shared by its draws.
          entropy: `[...]` float32 in [0, 1].
          alpha: `[...]` float32 guidance scale, 1 is none; given where `guidance` is set.

        Returns:
          `[..., G, C]` float32; equal to `x0` for fresh parameters.

        Raises:
          ValueError: `alpha` is missing, or given to a decoder without `guidance`.
        """
        if (alpha is not None) != self.guidance:
            got = "none" if alpha is None else "a scale"
            raise ValueError(f"alpha: got {got}, allowed with guidance=True only, and needed there")
        cond = dense(self.width, ("embed", "mlp"), self.dtype, name="cond_z")(z.astype(self.dtype))
        if self.entropy_adaln:
            # Two kernels, not one over concat(z, E): D + 1 rows would not divide over a mesh axis.
            e = entropy[..., None].astype(self.dtype)
            cond += dense(self.width, (None, "mlp"), self.dtype, name="cond_entropy")(e)
        if alpha is not None:
            # The scale is a single number; as sinusoids the network tells 1.5 from 1.6 without
            # large weights.
            h = sinusoid_features(alpha).astype(self.dtype)
            h = nn.silu(dense(self.width, (None, "embed"), self.dtype, name="alpha_in")(h))
            cond += dense(self.width, ("embed", "mlp"), self.dtype, name="alpha_out")(h)
        cond = nn.silu(cond)

        parts = [x0]
        if self.standardised:
            parts.append((x0 - mu[..., None, :]) / jnp.maximum(std, SIGMA_MIN)[..., None, None])
        h = jnp.concatenate(parts, axis=-1).astype(self.dtype)
        h = dense(self.width, (None, "embed"), self.dtype, name="input")(h)
        for i in range(self.depth):
            h = EntropyAdaLNBlock(self.width, self.dtype, name=f"block_{i}")(h, cond)
        zeros = nn.initializers.zeros_init()
        modulation = dense(2 * self.width, ("mlp", "embed"), self.dtype, zeros, "modulation")(cond)
        shift, scale = jnp.split(modulation[..., None, :], 2, axis=-1)
        h = layer_norm(affine=False, name="norm")(h)
        h = (h * (1 + scale) + shift).astype(self.dtype)
        residual = dense(self.token_dim, ("embed", None), self.dtype, zeros, "output")(h)
        # The sum is float32: in bfloat16 a small residual would vanish in the start.
        return x0 + residual.astype(jnp.float32)


def example(decoder: nn.Module, num_tokens: int, width: int) -> tuple[jax.Array | None, ...]:
    """Return arguments of a decoder of tokens or of grids, which take the same."""
    z, e = jnp.zeros((1, num_tokens, width)), jnp.zeros((1, num_tokens))
    x = jnp.zeros((1, num_tokens, decoder.token_dim))
    alpha = decoder.scales(jnp.float32(1), e.shape) if decoder.guidance else None
    return x[:, :, None], x, e, z, e, alpha
