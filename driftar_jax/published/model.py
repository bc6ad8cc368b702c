"""Drift-AR as published: one encoder call from the label, one decoder call for the whole grid.

Source: aSleepyTree/Drift-AR at 04977d1 (`models/drift_ar.py`, arXiv 2603.28049). The encoder is
TransDiff's 1-step form; `docs/published.md` lists what this project does otherwise, and why.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from driftar_jax.drift.grid import GridDecoder
from driftar_jax.drift.networks import Prior
from driftar_jax.entropy import prior_draw
from driftar_jax.hosts.transdiff import TransDiff
from driftar_jax.layers.blocks import TransformerBlock
from driftar_jax.layers.dense import dense, layer_norm
from driftar_jax.types import Encoding

# Floor of head sums and of averaged weights in Eq. 4.
ENTROPY_FLOOR = 1e-8

# The three sizes of the program; all with 64 buffer rows and 1000 classes.
PRESETS = {
    "base": dict(width=768, depth=24, num_heads=12, decoder_depth=12, draft_depth=6),
    "large": dict(width=1024, depth=32, num_heads=16, decoder_depth=16, draft_depth=6),
    "huge": dict(width=1280, depth=40, num_heads=16, decoder_depth=20, draft_depth=6),
}


def block_mask(buffer_size: int, num_tokens: int) -> jax.Array:
    """Return `[F + N, F + N]` bool of the penultimate block, True where a row may look.

    The buffer sees the buffer alone; a token sees the buffer and the tokens up to itself.
    """
    place = jnp.arange(buffer_size + num_tokens)
    # All buffer rows stand at the place of the last one, hence see each other.
    place = jnp.maximum(place, buffer_size - 1)
    return place[:, None] >= place[None, :]


class Encoder(TransDiff):
    """TransDiff's 1-step form with the block mask always on; same parameters."""

    def __call__(self, label: jax.Array, *, deterministic: bool = True) -> Encoding:
        """Map `label [B]`, -1 unconditional -> encoding; the same for every image of a class."""
        mask = block_mask(self.buffer_size, self.num_rows)
        return super().__call__(label, penultimate_mask=mask, deterministic=deterministic)


class CausalDraft(nn.Module):
    """Run the published draft model: from all of `z` to the features one position on.

    Attributes:
      width: D of features and blocks.
      depth: causal blocks, at least 1; the last gives the entropy.
      num_heads: attention heads; divides `width`.
      mlp_ratio: hidden width of a block's MLP over `width`.
      attention_dropout: in training, on attention weights.
      projection_dropout: in training, after projections.
      dtype: type of the matrix products.
    """

    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    attention_dropout: float = 0.1
    projection_dropout: float = 0.1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array, *, deterministic: bool = True) -> Encoding:
        """Map `z [B, N, D]` -> encoding whose row r predicts row r + 1 of `z`."""
        if self.depth < 1:
            raise ValueError(f"draft_depth: got {self.depth}, allowed at least 1")
        # Row r predicts row r + 1 and must not see it.
        mask = jnp.tril(jnp.ones((z.shape[1], z.shape[1]), bool))
        h, entropy = z.astype(self.dtype), None
        for i in range(self.depth):
            block = TransformerBlock(
                self.width,
                self.num_heads,
                self.mlp_ratio,
                self.attention_dropout,
                self.projection_dropout,
                entropy_floor=ENTROPY_FLOOR,
                dtype=self.dtype,
                name=f"block_{i}",
            )
            if i == self.depth - 1:
                h, entropy = block.with_entropy(h, mask=mask, deterministic=deterministic)
            else:
                h = block(h, mask=mask, deterministic=deterministic)
        h = layer_norm(name="norm")(h)
        out = dense(self.width, ("mlp", "embed"), self.dtype, name="output")(h)
        return Encoding(out.astype(jnp.float32), entropy)


class DriftAR(nn.Module):
    """Encoder, prior, decoder, draft model and features of the published program.

    Attributes:
      num_tokens: N, positions of the token grid in raster order.
      token_dim: C, channels of a token.
      num_classes: classes; label -1 is unconditional.
      width: D of encoder, decoder, draft model and features.
      depth: blocks of the encoder (twice the program's `encoder_depth`), at least 2.
      num_heads: attention heads; divides `width`.
      buffer_size: F, class rows in front of the content.
      decoder_depth: blocks of the decoder.
      draft_depth: blocks of the draft model.
      mlp_ratio: hidden width of a block's MLP over `width`.
      sigma_max: standard deviation of the start at entropy 1.
      tau: curvature of Eq. 6.
      attention_dropout: in training, on attention weights.
      projection_dropout: in training, after projections.
      dtype: type of the matrix products; norms, softmax and entropy stay float32.
    """

    num_tokens: int
    token_dim: int
    num_classes: int
    width: int
    depth: int
    num_heads: int
    buffer_size: int
    decoder_depth: int
    draft_depth: int
    mlp_ratio: float = 4.0
    sigma_max: float = 0.5
    tau: float = 2.0
    attention_dropout: float = 0.1
    projection_dropout: float = 0.1
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        """Make what is sampled, the draft model, and what the feature losses read."""
        self.host, self.prior, self.decoder = sampled_parts(self)
        block = _block_fields(self)
        self.draft = CausalDraft(self.width, self.draft_depth, self.num_heads, **block)
        self.to_features = dense(self.width, (None, "embed"), self.dtype)
        self.feature_block = TransformerBlock(self.width, self.num_heads, **block)

    def encode(self, label: jax.Array, *, deterministic: bool = True) -> Encoding:
        """Map `label [B]`, -1 unconditional -> encoding; the same for every image of a class."""
        return self.host(label, deterministic=deterministic)

    def generate(
        self,
        encoding: Encoding,
        eps: jax.Array,
        condition: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Start at the prior (Eq. 6-7) and decode it, once.

        Args:
          encoding: `z [B, N, D]` of the prior's mean, `entropy [B, N]` of its spread and of the
            decoder.
          eps: `[B, N, C]` float32, standard normal.
          condition: `[B, N, D]` features that the decoder reads; None takes `encoding.z`.
          deterministic: False draws dropout from the `dropout` key.

        Returns:
          `[B, N, C]` float32 tokens.
        """
        mu, std = self.prior(encoding.z, encoding.entropy)
        condition = encoding.z if condition is None else condition
        start = prior_draw(mu, std, eps)[:, :, None]
        decode = functools.partial(self.decoder, deterministic=deterministic)
        return decode(start, mu, std, condition, encoding.entropy)[:, :, 0]

    def propose(self, z: jax.Array, *, deterministic: bool = True) -> Encoding:
        """Run the draft model on a complete `z [B, N, D]`."""
        return self.draft(z, deterministic=deterministic)

    def features(self, tokens: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """Run phi: `tokens [B, N, C]` -> `[B, N, D]`; no mask, no buffer rows, no positions."""
        return self.feature_block(self.to_features(tokens), deterministic=deterministic)

    def __call__(self, label: jax.Array, eps: jax.Array) -> jax.Array:
        """Every part once, so that `init` makes all parameters: `[B]`, `[B, N, C]` -> tokens."""
        encoding = self.encode(label)
        tokens = self.generate(encoding, eps)
        self.propose(encoding.z)
        self.features(tokens)
        return tokens


def sampled_parts(fields: DriftAR) -> tuple[Encoder, Prior, GridDecoder]:
    """Return the host, prior and decoder of a model: all that sampling needs."""
    block = _block_fields(fields)
    host = Encoder(
        num_rows=fields.num_tokens,
        groups=1,
        reference_dim=fields.token_dim,
        num_classes=fields.num_classes,
        width=fields.width,
        depth=fields.depth,
        num_heads=fields.num_heads,
        buffer_size=fields.buffer_size,
        entropy_floor=ENTROPY_FLOOR,
        **block,
    )
    decoder = GridDecoder(
        fields.token_dim,
        fields.width,
        fields.decoder_depth,
        fields.num_heads,
        # The bare form of the paper: the decoder reads the start once, and its output is the token
        # itself.
        standardised=False,
        residual=False,
        zero_start=False,
        **block,
    )
    return host, Prior(fields.token_dim, fields.sigma_max, fields.tau), decoder


def _block_fields(fields: DriftAR) -> dict:
    return dict(
        mlp_ratio=fields.mlp_ratio,
        attention_dropout=fields.attention_dropout,
        projection_dropout=fields.projection_dropout,
        dtype=fields.dtype,
    )


def with_features(params: dict) -> dict:
    """Return `params` with phi's block as a copy of the encoder's last block but one.

    The published program copies when it is built or resumed; a checkpoint of this project holds
    the copy.
    """
    blocks = [name for name in params["host"] if name.startswith("encoder_blocks_")]
    return {**params, "feature_block": params["host"][f"encoder_blocks_{len(blocks) - 2}"]}
