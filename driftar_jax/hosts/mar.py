"""MAR: masked autoregressive backbone over continuous tokens.

Source: MAR (arXiv 2406.11838), `models/mar.py` of LTH14/mar at fe470ac. An encoder sees the known
tokens behind `buffer_size` copies of the class embedding; a decoder sees every position, with a
mask token where unknown. Both are bidirectional, so every content key is visible (n_r = N).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from driftar_jax.layers import stacked
from driftar_jax.layers.blocks import TransformerBlock, recomputed
from driftar_jax.layers.dense import dense, layer_norm
from driftar_jax.types import Encoding

# Released sizes. The head is not fixed by the size: these are the heads of the released weights.
PRESETS = {
    "base": dict(
        width=768, encoder_depth=12, decoder_depth=12, num_heads=12, head_depth=6, head_width=1024
    ),
    "large": dict(
        width=1024, encoder_depth=16, decoder_depth=16, num_heads=16, head_depth=8, head_width=1280
    ),
    "huge": dict(
        width=1280, encoder_depth=20, decoder_depth=20, num_heads=16, head_depth=12, head_width=1536
    ),
}

# How the grid may be revealed (`orders.py`).
ORDERS = ("random", "halton", "far", "chessboard")
# What the sampling loop may lean on instead of full calls (`mar_lazy.py`, `mar_recap.py`).
ACCELERATORS = ("none", "condition_cache", "token_cache", "lazymar", "recap")

# Laws of the unknown share in training (`masks.py`), and its floor under MAR's own (mar.md section
# 3), which bounds what the encoder holds.
LAWS = ("mar", "generation")
RATIO_MIN = 0.7


class MAR(nn.Module):
    """Map tokens and known mask to features `z` and entropy `E`, in one forward: the backbone.

    Attributes:
      num_tokens: N, positions of the token grid in raster order.
      token_dim: C, channels of a token.
      num_classes: classes; label -1 is the unconditional embedding.
      width: D of encoder and decoder.
      encoder_depth: blocks of the encoder, at least 1.
      decoder_depth: blocks of the decoder, at least 1; the last but one gives the entropy, or the
        only one.
      num_heads: attention heads; divides `width`.
      buffer_size: F, class rows in front of the tokens.
      mlp_ratio: hidden width of a block's MLP over `width`.
      attention_dropout: in training, on attention weights.
      projection_dropout: in training, after projections.
      remat: as in `layers.remat.recomputed`, of every block.
      scan: as in `stacked.run`, with dropout.
      attention: as in `TransformerBlock`.
      dtype: type of the matrix products; norms, softmax and entropy stay float32.
    """

    num_tokens: int
    token_dim: int
    num_classes: int
    width: int
    encoder_depth: int
    decoder_depth: int
    num_heads: int
    buffer_size: int
    mlp_ratio: float = 4.0
    attention_dropout: float = 0.1
    projection_dropout: float = 0.1
    remat: str = "none"
    scan: bool = False
    attention: str = "auto"
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        """Make tables, projections and blocks.

        Raises:
          ValueError: a depth or the buffer is below 1.
        """
        for field, least in (("encoder_depth", 1), ("decoder_depth", 1), ("buffer_size", 1)):
            if getattr(self, field) < least:
                raise ValueError(f"{field}: got {getattr(self, field)}, allowed at least {least}")
        rows = self.buffer_size + self.num_tokens

        # Every table of the published program starts at a standard deviation of 0.02.
        def table(name, size, axis):
            init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (axis, "embed"))
            return self.param(name, init, (size, self.width))

        def blocks(depth):
            return [
                TransformerBlock(
                    self.width,
                    self.num_heads,
                    self.mlp_ratio,
                    self.attention_dropout,
                    self.projection_dropout,
                    attention=self.attention,
                    dtype=self.dtype,
                )
                for _ in range(depth)
            ]

        self.class_emb = table("class_emb", self.num_classes, "class")
        self.fake_latent = table("fake_latent", 1, None)
        self.mask_token = table("mask_token", 1, None)
        self.encoder_pos_embed = table("encoder_pos_embed", rows, "position")
        self.decoder_pos_embed = table("decoder_pos_embed", rows, "position")
        self.diffusion_pos_embed = table("diffusion_pos_embed", self.num_tokens, "position")
        self.z_proj = dense(self.width, (None, "embed"), self.dtype)
        self.z_proj_ln = layer_norm()
        self.encoder_blocks = blocks(self.encoder_depth)
        self.encoder_norm = layer_norm()
        self.decoder_embed = dense(self.width, ("mlp", "embed"), self.dtype)
        self.decoder_blocks = blocks(self.decoder_depth)
        self.decoder_norm = layer_norm()

    def __call__(
        self,
        tokens: jax.Array,
        known: jax.Array,
        label: jax.Array,
        *,
        keep: int | None = None,
        deterministic: bool = True,
    ) -> Encoding:
        """Make one backbone call.

        Args:
          tokens: `[B, N, C]` floating; values at unknown positions are never read.
          known: `[B, N]` bool, True where the token is given.
          label: `[B]` integer in -1..num_classes-1; -1 is unconditional.
          keep: None runs the encoder over all rows with unknown keys masked. A number runs it
            over that many known tokens per image (the same result at less cost); it must be at
            least the largest known count of the batch: tokens beyond it count as unknown.
          deterministic: False draws dropout from the `dropout` key.

        Returns:
          Encoding with `z [B, N, D]` float32 (for known positions as well), `E [B, N]` (Eq. 4).

        Raises:
          ValueError: a shape does not fit the fields, or `keep` is outside 0..N.
        """
        rows = self.encode_known(tokens, known, label, keep=keep, deterministic=deterministic)
        return self.decode(rows, known, keep=keep, deterministic=deterministic)

    def encode_known(
        self,
        tokens: jax.Array,
        known: jax.Array,
        label: jax.Array,
        *,
        keep: int | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Run the encoder; arguments as in `__call__`.

        Returns:
          `[B, F + N, D]` (`keep=None`) or `[B, F + keep, D]` float32: buffer rows, then tokens in
          raster order. Rows of unknown tokens, and of padding, hold nothing meaningful.
        """
        self._check(tokens, known, label, keep)
        # Label -1 would index the last class from behind; it is clamped to a valid row first, and
        # that row is replaced by the unconditional one.
        class_embedding = jnp.where(
            (label < 0)[:, None], self.fake_latent, self.class_emb[jnp.maximum(label, 0)]
        )
        buffer = jnp.broadcast_to(
            class_embedding[:, None], (label.shape[0], self.buffer_size, self.width)
        )
        # An unknown token may hold anything; 0 * NaN would pass through a masked key's value.
        image = self.z_proj(jnp.where(known[..., None], tokens, 0))
        positions = self.encoder_pos_embed
        if keep is not None:
            # Only rows that stand for known tokens are run. Each carries the position embedding of
            # its place in the grid: attention has no other notion of where a row came from.
            first = _first_known(known, keep)
            image = jnp.take_along_axis(image, first[..., None], axis=1)
            positions = jnp.concatenate(
                [
                    jnp.broadcast_to(positions[: self.buffer_size], buffer.shape),
                    positions[self.buffer_size + first],
                ],
                axis=1,
            )
            # An image with fewer known tokens than `keep` has padding rows at the end; as keys they
            # are masked, and what they hold themselves is never put on the canvas.
            known = jnp.take_along_axis(known, first, axis=1)
        else:
            positions = positions[None]
        h = jnp.concatenate([buffer.astype(image.dtype), image], axis=1) + positions
        h = self.z_proj_ln(h).astype(self.dtype)
        # The buffer is always visible: an image without a known token still has keys to attend to,
        # and no row of the softmax is empty.
        key_mask = jnp.concatenate([jnp.ones(buffer.shape[:2], bool), known], axis=1)
        # With `keep` the buffer and the known tokens come first, and padding last.
        h = self._run(
            "encoder_blocks", self.encoder_blocks, h, key_mask, deterministic, keep is not None
        )
        return self.encoder_norm(h)

    def decode(
        self,
        rows: jax.Array,
        known: jax.Array,
        *,
        keep: int | None = None,
        deterministic: bool = True,
    ) -> Encoding:
        """Run the decoder on `rows` of `encode_known` with the same `known` and `keep`.

        Returns:
          Encoding with `z [B, N, D]` float32 and `E [B, N]`.
        """
        canvas = self.canvas(rows, known, keep=keep)
        return self.read(canvas, deterministic=deterministic)

    def place(
        self, tokens: jax.Array, known: jax.Array, label: jax.Array, *, keep: int | None = None
    ) -> jax.Array:
        """Run encoder and `canvas`, all that depends on `keep`; arguments as `__call__`.

        Returns:
          `[B, F + N, D]` in the type of the matrix products, for `look`.
        """
        return self.canvas(self.encode_known(tokens, known, label, keep=keep), known, keep=keep)

    def canvas(self, rows: jax.Array, known: jax.Array, *, keep: int | None = None) -> jax.Array:
        """Put `rows` of `encode_known` in their places, mask tokens elsewhere: `[B, F + N, D]`."""
        h = self.decoder_embed(rows)
        buffer, image = h[:, : self.buffer_size], h[:, self.buffer_size :]
        if keep is not None:
            # The k-th known token in raster order is row k of the shortened encoder, the order in
            # which `_first_known` took them.
            rank = jnp.cumsum(known, axis=1) - 1
            # Known tokens that found no room get a mask token; reading a clamped row instead would
            # put a wrong token in their place.
            known = known & (rank < keep)
            if keep:
                # Unknown places read some row or other, which the `where` below replaces.
                at = jnp.clip(rank, 0, keep - 1)[..., None]
                image = jnp.take_along_axis(image, at, axis=1)
            else:
                image = jnp.zeros((*known.shape, self.width), h.dtype)
        filler = self.mask_token.astype(h.dtype)[None]
        image = jnp.where(known[..., None], image, filler)
        h = jnp.concatenate([buffer, image], axis=1) + self.decoder_pos_embed[None]
        return h.astype(self.dtype)

    def read(self, canvas: jax.Array, *, deterministic: bool = True) -> Encoding:
        """Run all decoder blocks on a `canvas [B, F + N, D]`; returns `z [B, N, D]`, `E [B, N]`."""
        encoding = self.look(canvas, deterministic=deterministic)
        return Encoding(self.features(encoding.z, deterministic=deterministic), encoding.entropy)

    def look(self, canvas: jax.Array, *, deterministic: bool = True) -> Encoding:
        """Run all decoder blocks but the last, which `features` runs for the wanted tokens alone.

        Args:
          canvas: `[B, F + N, D]` of `place`.
          deterministic: as `__call__`.

        Returns:
          What `features` reads in the place of `z`, `[B, F + N, D]`, and `E [B, N]`.
        """
        # The last block is left to `features`. A decoder of one block has no block before the last:
        # that one is run here, and `features` only normalises.
        plain = self.loops["decoder_blocks"]
        h = self._run("decoder_blocks", self.decoder_blocks[:plain], canvas, None, deterministic)
        h, entropy = recomputed(
            self.remat,
            lambda block, h: block.with_entropy(
                h, content_start=self.buffer_size, deterministic=deterministic
            ),
            self.decoder_blocks[plain],
            h,
        )
        return Encoding(z=h, entropy=entropy)

    def features(
        self,
        h: jax.Array,
        positions: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Run the last decoder block for the wanted tokens alone.

        Args:
          h: `[B, F + N, D]` of `look`.
          positions: `[B, M]` int32 tokens; None: all N.
          deterministic: as `__call__`.

        Returns:
          `z [B, M, D]` float32.
        """
        last = self.decoder_blocks[max(self.decoder_depth - 1, 1) :]
        embed = self.diffusion_pos_embed[None]
        if positions is None:
            for block in last:
                h = self._through(block, h, None, deterministic)
            return self.decoder_norm(h)[:, self.buffer_size :] + embed
        rows = (self.buffer_size + positions)[..., None]
        x = jnp.take_along_axis(h, rows, axis=1)
        for block in last:
            q, k, v = block.heads(h)
            # Every row is a key and a value of the last block, but only wanted rows need to ask, to
            # pass through the MLP and to be normalised.
            q = jnp.take_along_axis(q, rows[..., None], axis=1)
            x, _ = block.attend(x, q, k, v, content_start=None, deterministic=deterministic)
        return self.decoder_norm(x) + embed[0][positions]

    @property
    def loops(self) -> dict[str, int]:
        """Count the blocks that `stacked.stack` may make one tree of: before the entropy's."""
        plain = max(self.decoder_depth - 2, 0)
        return {"encoder_blocks": self.encoder_depth, "decoder_blocks": plain}

    def _run(self, name, blocks, h, key_mask, deterministic, first_keys=False):
        def call(block, h):
            return self._through(block, h, key_mask, deterministic, first_keys)

        scan = self.scan and not deterministic
        return stacked.run(self, name, blocks, call, h, scan=scan)

    def _through(self, block, h, key_mask, deterministic, first_keys=False):
        def call(block, h, key_mask):
            return block(h, key_mask, first_keys=first_keys, deterministic=deterministic)

        return recomputed(self.remat, call, block, h, key_mask)

    def _check(self, tokens, known, label, keep):
        batch = label.shape[0]
        wanted = {
            "tokens": (tokens.shape, (batch, self.num_tokens, self.token_dim)),
            "known": (known.shape, (batch, self.num_tokens)),
            "label": (label.shape, (batch,)),
        }
        for field, (got, allowed) in wanted.items():
            if got != allowed:
                raise ValueError(f"{field}: got shape {got}, allowed {allowed}")
        if keep is not None and not 0 <= keep <= self.num_tokens:
            raise ValueError(f"keep: got {keep}, allowed 0..{self.num_tokens}")


def _first_known(known: jax.Array, keep: int) -> jax.Array:
    """`known [B, N]` -> `[B, keep]` int32: known positions in raster order, then unknown ones."""
    return jnp.argsort(~known, axis=1, stable=True)[:, :keep]


def take(values: jax.Array, positions: jax.Array) -> jax.Array:
    """Return `values [R, N, ...]` at `positions [R, M]`, `[R, M, ...]`."""
    return jax.vmap(lambda v, p: v[p])(values, positions)
