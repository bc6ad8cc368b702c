"""NextStep-1: a causal language model over text and continuous image tokens.

Source: NextStep-1 (arXiv 2508.10711), `models/modeling_nextstep.py` of stepfun-ai/NextStep-1 at
6e49bae. The encoding of image token k is the hidden state of the slot before it, the
begin-of-image mark for k = 0; no position is added to image inputs. Attention is causal, so a row
sees as many content keys as there are image tokens up to it, and `E` of tokens 0 and 1 is 0.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from driftar_jax.layers import causal
from driftar_jax.layers.causal import Cache, CausalStack
from driftar_jax.layers.dense import dense
from driftar_jax.types import Encoding

# The released size; the vocabulary and the norm's eps are read from a checkpoint's own files.
PRESETS = {
    "14b": dict(
        width=5120,
        depth=48,
        num_heads=40,
        num_kv_heads=8,
        head_dim=128,
        mlp_width=13824,
        head_width=1536,
        head_depth=12,
    ),
}

# Side of the grid that `gen_pos_embed` knows.
_POSITION_SIDE = 32


def generation_positions(width: int) -> np.ndarray:
    """Return the table `gen_pos_embed` of the official state dict.

    Args:
      width: D, a multiple of 4.

    Returns:
      `[1024, D]` float32: tokens of a 32 x 32 grid in raster order; the first half of the channels
      says the column, the second the row, each all sines and then all cosines.
    """
    row, column = np.divmod(np.arange(_POSITION_SIDE**2), _POSITION_SIDE)
    # float64 until the end: float32 angles would cost the table its last digits.
    omega = 10000.0 ** (-np.arange(width // 4) / (width / 4))

    def half(position):
        angles = position[:, None] * omega
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    return np.concatenate([half(column), half(row)], axis=1).astype(np.float32)


class NextStep(nn.Module):
    """Hold the backbone and its projectors; the flow head is a module of its own.

    Attributes:
      vocab_size: rows of the embedding.
      placeholder: token id whose positions hold image tokens.
      token_dim: C, channels of an image token.
      width, depth, num_heads, num_kv_heads, head_dim, mlp_width, norm_eps, rope_theta,
        attention_bias, entropy_chunk, remat, attention, unroll, dtype: as in `causal.CausalStack`.
      positions: whether `gen_pos_embed` is added before the head's projector; released models do
        without.
    """

    vocab_size: int
    placeholder: int
    token_dim: int
    width: int
    depth: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    norm_eps: float
    rope_theta: float
    attention_bias: bool = True
    positions: bool = False
    entropy_chunk: int = 256
    remat: str = "none"
    attention: str = "auto"
    unroll: bool = False
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        """Make the embedding, both projectors, the text's head and the stack.

        Raises:
          ValueError: the placeholder is no id of the vocabulary.
        """
        if not 0 <= self.placeholder < self.vocab_size:
            raise ValueError(
                f"placeholder: got {self.placeholder}, allowed 0..{self.vocab_size - 1}"
            )
        # One initial scale for embedding, projectors and the layers of the stack.
        small = nn.initializers.normal(0.02)
        table = nn.with_logical_partitioning(small, (None, "table"))
        self.embed_tokens = self.param("embed_tokens", table, (self.vocab_size, self.width))
        self.image_in_projector = dense(self.width, (None, "embed"), self.dtype, small)
        self.image_out_projector = dense(self.width, ("mlp", "embed"), self.dtype, small)
        self.lm_head = dense(self.vocab_size, ("table", None), self.dtype, small, bias=False)
        self.stack = CausalStack(
            depth=self.depth,
            width=self.width,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            mlp_width=self.mlp_width,
            norm_eps=self.norm_eps,
            rope_theta=self.rope_theta,
            attention_bias=self.attention_bias,
            entropy_chunk=self.entropy_chunk,
            remat=self.remat,
            attention=self.attention,
            unroll=self.unroll,
            dtype=self.dtype,
        )

    def __call__(
        self,
        ids: jax.Array,
        tokens: jax.Array,
        *,
        padding: jax.Array | None = None,
        content: jax.Array | None = None,
    ) -> Encoding:
        """Whole sequences, as in training.

        Args:
          ids: `[B, T]` integer; the placeholder where an image token stands.
          tokens: `[B, M, C]` floating; the k-th placeholder of a row takes the row's k-th token.
          padding: `[B]` integer, leading positions that hold nothing; None: 0.
          content: `[B, T]` bool, positions whose keys count in the entropy; None: the placeholders.

        Returns:
          Encoding of every position, each of what follows it: `z [B, T, D]` float32 after the
          final norm, `E [B, T]` (Eq. 4).

        Raises:
          ValueError: a shape does not fit the fields.
        """
        x = self.embed(ids, tokens)
        content = ids == self.placeholder if content is None else content
        hidden, entropy = self.stack(x, padding=padding, content=content)
        return Encoding(z=hidden.astype(jnp.float32), entropy=entropy)

    def everything(
        self, ids: jax.Array, tokens: jax.Array, *, padding: jax.Array | None = None
    ) -> tuple[Encoding, jax.Array, jax.Array]:
        """Run `__call__`, head conditions `[B, T, D]` and `logits`: every parameter is used."""
        encoding = self(ids, tokens, padding=padding)
        # Used by `init`: parameters exist only of modules that a call went through.
        index = jnp.zeros((1, 1), jnp.int32)
        return encoding, self.condition(encoding.z, index), self.logits(encoding.z)

    def embed(self, ids: jax.Array, tokens: jax.Array | None = None) -> jax.Array:
        """Make the inputs `[B, T, D]` of `ids [B, T]`, image tokens `[B, M, C]` at the
        placeholders.

        Raises:
          ValueError: `tokens` are of another batch or width.
        """
        text = self.embed_tokens[ids].astype(self.dtype)
        if tokens is None:
            return text
        if tokens.ndim != 3 or tokens.shape[::2] != (ids.shape[0], self.token_dim):
            allowed = f"[{ids.shape[0]}, any, {self.token_dim}]"
            raise ValueError(f"tokens: got shape {tokens.shape}, allowed {allowed}")
        held = ids == self.placeholder
        nth = jnp.clip(jnp.cumsum(held, axis=1) - 1, 0, tokens.shape[1] - 1)
        image = jnp.take_along_axis(self.embed_image(tokens), nth[..., None], axis=1)
        return jnp.where(held[..., None], image, text)

    def embed_image(self, tokens: jax.Array) -> jax.Array:
        """Map image tokens `[B, Q, C]` to inputs `[B, Q, D]`."""
        return self.image_in_projector(tokens)

    def condition(self, z: jax.Array, index: jax.Array | None = None) -> jax.Array:
        """Return what the flow head is told of a token, `[..., D]`.

        Args:
          z: `[..., D]` of an `Encoding`.
          index: int, broadcastable to `[...]`, number of the token in its image; read only where
            `positions` is set.
        """
        if self.positions:
            # Beyond the table the official program reads nothing that is used.
            table = jnp.asarray(generation_positions(self.width))
            z = z + jnp.broadcast_to(table[jnp.minimum(index, len(table) - 1)], z.shape)
        return self.image_out_projector(z)

    def logits(self, z: jax.Array) -> jax.Array:
        """Map `z [..., D]` to logits of the next token id, `[..., vocab_size]` float32."""
        return self.lm_head(z).astype(jnp.float32)

    def empty_cache(
        self, slots: int, padding: jax.Array, prompt: int, dtype: jnp.dtype | None = None
    ) -> Cache:
        """Make a cache of `slots` for rows of `padding [B]`; image tokens begin at slot `prompt`.

        `dtype` of keys and values is that of the matrix products by default.
        """
        return causal.empty_cache(
            self.depth,
            self.num_kv_heads,
            self.head_dim,
            slots=slots,
            padding=padding,
            content_start=prompt,
            dtype=self.dtype if dtype is None else dtype,
        )

    def prefill(
        self, ids: jax.Array, cache: Cache, tokens: jax.Array | None = None
    ) -> tuple[Encoding, Cache]:
        """Read prompts `ids [B, P]`, source images `tokens [B, M, C]` at their placeholders.

        Returns:
          Encoding of the last position alone, `z [B, 1, D]`, `E [B, 1]`, and the cache: that is
          the encoding of token 0.
        """
        encoding, cache = self.advance_inputs(self.embed(ids, tokens), cache)
        return jax.tree.map(lambda a: a[:, -1:], encoding), cache

    def advance(self, tokens: jax.Array, cache: Cache) -> tuple[Encoding, Cache]:
        """Read further image tokens `[B, Q, C]` behind the cache, one (decoding) or several
        (verifying).

        Returns:
          Encoding `z [B, Q, D]`, `E [B, Q]`: row i is that of the token after input i. And the
          cache, from which `rolled_back` takes rejected tokens away.
        """
        return self.advance_inputs(self.embed_image(tokens), cache)

    def advance_inputs(self, x: jax.Array, cache: Cache) -> tuple[Encoding, Cache]:
        """Do as `advance`, with inputs `x [B, Q, D]` of `embed` or `embed_image`."""
        hidden, entropy, cache = self.stack.advance(x, cache)
        return Encoding(z=hidden.astype(jnp.float32), entropy=entropy), cache

    @staticmethod
    def apart(params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters as many short calls on one CPU read them (`causal.apart`)."""
        return {**params, "stack": causal.apart(params["stack"])}


# --- sampling ----------------------------------------------------------------------------------

GUIDANCE_SCHEDULES = ("constant", "linear", "rising")


def guidance_at(scale: float, num_tokens: int, schedule: str = "constant") -> np.ndarray:
    """Return the guidance scale of each token.

    Args:
      scale: nominal scale, at least 1.
      num_tokens: N.
      schedule: `constant`; `linear` falls from `scale` at the first token to nearly 1, as in
        NextStep-1; `rising` begins at half, as what NextStep-1.1 calls linear.

    Returns:
      `[N]` float32.

    Raises:
      ValueError: an unknown `schedule`.
    """
    k = np.arange(num_tokens)
    if schedule == "constant":
        scales = np.full(num_tokens, scale)
    elif schedule == "linear":
        scales = 1.0 + (scale - 1.0) * (num_tokens - k) / num_tokens
    elif schedule == "rising":
        scales = np.maximum(scale / 2.0, 1.0 + (scale - 1.0) * k / num_tokens)
    else:
        allowed = " | ".join(GUIDANCE_SCHEDULES)
        raise ValueError(f"guidance_schedule: got {schedule!r}, allowed {allowed}")
    return scales.astype(np.float32)


def normalise(tokens: jax.Array) -> jax.Array:
    """Give tokens `[..., C]` mean 0 and standard deviation 1 each, float32, as the autoencoder's.

    Clean tokens lie on that sphere; projecting a sampled one keeps high guidance stable.
    """
    # In bfloat16 rounding would move even tokens that lie on the sphere already.
    x = tokens.astype(jnp.float32)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)
