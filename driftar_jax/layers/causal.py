"""The causal decoder stack of language-model hosts: RMSNorm, rotary shared-key attention, SwiGLU.

One scan over stacked layers, with or without a key/value cache. The cache keeps a length of its
own for every row, so rows accept different counts and going back is setting a length: a query sees
slots up to its own, stale ones behind the length are invisible and the next call overwrites them.

Source: `modeling_llama.py` of stepfun-ai/NextStep-1 at 6e49bae; the layer is Llama's with biases on
queries, keys and values.
"""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn

from driftar_jax.layers.attention import attention_with_entropy
from driftar_jax.layers.blocks import remat_policy
from driftar_jax.layers.dense import dense, of_batch


@flax.struct.dataclass
class Cache:
    """Keys and values of all layers. Rows are branches of guidance times images, branch by branch.

    Attributes:
      keys: `[L, B, S, h, K]`, rotated to the position of their slot.
      values: `[L, B, S, h, K]`.
      length: `[B]` int32, slots filled; the next input goes to slot `length`.
      padding: `[B]` int32, leading slots that nobody may look at.
      content: `[B, S]` bool, slots whose keys count in the entropy.
    """

    keys: jax.Array
    values: jax.Array
    length: jax.Array
    padding: jax.Array
    content: jax.Array

    def rolled_back(self, length: jax.Array) -> "Cache":
        """Return the cache as it was at `length [b]` int32, b images whose branches share a length.

        Nothing is copied. A length beyond the present one is cut to it.
        """
        length = jnp.tile(length, self.length.shape[0] // length.shape[0])
        return self.replace(length=jnp.minimum(self.length, length.astype(jnp.int32)))


def empty_cache(
    depth: int,
    num_kv_heads: int,
    head_dim: int,
    *,
    slots: int,
    padding: jax.Array,
    content_start: int,
    dtype: jnp.dtype,
) -> Cache:
    """Make a cache for rows of `padding [B]` leading positions.

    Args:
      depth, num_kv_heads, head_dim: as in `CausalStack`.
      slots: S, room for the prompt, the tokens and what a call may overshoot.
      padding: `[B]` integer.
      content_start: first slot of generated tokens, the only ones that count in the entropy.
      dtype: of keys and values.
    """
    batch = padding.shape[0]
    shape = (depth, batch, slots, num_kv_heads, head_dim)
    content = jnp.broadcast_to(jnp.arange(slots) >= content_start, (batch, slots))
    return Cache(
        jnp.zeros(shape, dtype),
        jnp.zeros(shape, dtype),
        jnp.zeros(batch, jnp.int32),
        padding.astype(jnp.int32),
        content,
    )


@flax.struct.dataclass
class _Context:
    """What all layers of one call share: rotation, mask, and where keys and values go."""

    cos: jax.Array
    sin: jax.Array
    mask: jax.Array
    content: jax.Array
    slots: jax.Array


# Layers are written out where copying their weights takes time, where these may be there twice, and
# where the program is not too long to compile.
_APART_BYTES = 2**20, 2**30
_APART_LAYERS = 16


def apart(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return parameters of a `CausalStack` with a tree for each layer, for many short calls.

    On a CPU a product cannot read its slice of a stacked array: the weights of every layer are
    copied in every call, which takes longer than the products of a single input (68 ms a token and
    28 without, of 62 million parameters on one core; 2.4 and 1.3 of 2 million). Tiny, large and
    deep stacks come back as they are.

    Args:
      params: the stack's own tree.
    """
    layers = jax.tree.leaves(params["layers"])
    depth, size = layers[0].shape[0], sum(a.size * a.dtype.itemsize for a in layers)
    if depth > _APART_LAYERS or not _APART_BYTES[0] <= size <= _APART_BYTES[1]:
        return params
    rest = {name: tree for name, tree in params.items() if name != "layers"}
    of_layer = lambda i: jax.tree.map(lambda a: a[i], params["layers"])  # noqa: E731
    return rest | {f"apart_{i}": of_layer(i) for i in range(depth)}


def inverse_frequencies(head_dim: int, theta: float) -> jax.Array:
    """Return `[K / 2]` float32: angle per position of each pair of channels."""
    exponent = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    return 1.0 / theta**exponent


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turn `x [B, N, H, K]` by `cos`, `sin` `[B, N, K]`; a pair spans the halves."""
    first, second = jnp.split(x, 2, axis=-1)
    # Halves and not neighbours, as in the weights of the Llama family.
    turned = jnp.concatenate([-second, first], axis=-1)
    return x * cos[:, :, None] + turned * sin[:, :, None]


class RMSNorm(nn.Module):
    """`w * x / rms(x)`: statistics in float32, back to the type of `x`, then times `w`."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[..., D]` -> the same shape and type."""
        init = nn.with_logical_partitioning(nn.initializers.ones_init(), ("embed",))
        scale = self.param("scale", init, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        wide = wide / jnp.sqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.eps)
        # Axes of size 1 by hand: ranks are never promoted silently in this project.
        scale = scale.astype(x.dtype).reshape((1,) * (x.ndim - 1) + scale.shape)
        return scale * wide.astype(x.dtype)


class CausalLayer(nn.Module):
    """One layer: `x += o(attn(rms(x)))`, `x += down(silu(gate(u)) * up(u))`, `u = rms(x)`.

    Fields as in `CausalStack`.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    norm_eps: float
    entropy_layer: int
    attention_bias: bool
    entropy_chunk: int
    attention: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, carry, index: jax.Array, context: _Context):
        """Map a carry `(x [B, Q, D], entropy [B, Q], keys, values)` -> its next; uncached: None."""
        x, entropy, keys, values = carry
        x, width = of_batch(x), x.shape[-1]
        small = nn.initializers.normal(0.02)

        def linear(features, axes, name, bias=False):
            return dense(features, axes, self.dtype, small, name, bias=bias)

        def heads(h, count, name):
            out = linear(count * self.head_dim, ("embed", "heads"), name, self.attention_bias)(h)
            return out.reshape(*out.shape[:2], count, self.head_dim)

        h = RMSNorm(self.norm_eps, name="input_norm")(x)
        q = rotate(heads(h, self.num_heads, "q_proj"), context.cos, context.sin)
        k = rotate(heads(h, self.num_kv_heads, "k_proj"), context.cos, context.sin)
        v = heads(h, self.num_kv_heads, "v_proj")
        if keys is not None:
            # Dropped, not clamped: a clamped write would move back over keys that are still valid.
            at = (index, jnp.arange(x.shape[0])[:, None], context.slots)
            keys = keys.at[at].set(k.astype(keys.dtype), mode="drop")
            values = values.at[at].set(v.astype(values.dtype), mode="drop")
            # The cache of all layers is the carry of the scan, written in place; a layer reads its
            # slice of it.
            k = jax.lax.dynamic_index_in_dim(keys, index, keepdims=False).astype(self.dtype)
            v = jax.lax.dynamic_index_in_dim(values, index, keepdims=False).astype(self.dtype)

        def with_entropy(q, k, v):
            return attention_with_entropy(
                q,
                k,
                v,
                context.mask,
                content=context.content,
                chunk=self.entropy_chunk,
                kind=self.attention,
            )

        def without(q, k, v):
            # The other layers hand the entropy on; both branches of the `cond` return the same
            # shapes, and only the taken one runs.
            return jax.nn.dot_product_attention(q, k, v, mask=context.mask[:, None]), entropy

        out, entropy = jax.lax.cond(index == self.entropy_layer, with_entropy, without, q, k, v)
        x = x + linear(width, ("heads", "embed"), "o_proj")(out.reshape(*out.shape[:2], -1))
        u = RMSNorm(self.norm_eps, name="mlp_norm")(x)
        gate = linear(self.mlp_width, ("embed", "mlp"), "gate_proj")(u)
        up = linear(self.mlp_width, ("embed", "mlp"), "up_proj")(u)
        x = x + linear(width, ("mlp", "embed"), "down_proj")(nn.silu(gate) * up)
        for name, value in (("q", q), ("k", k), ("out", x)):
            self.sow("intermediates", name, value)
        return (x, entropy, keys, values), None


class CausalStack(nn.Module):
    """Causal layers and the final norm, with the entropy of the layer before the last.

    Attributes:
      depth: L layers, at least 2.
      width: D of the residual stream.
      num_heads: query heads H.
      num_kv_heads: key and value heads h; divides H, consecutive query heads share one.
      head_dim: K, even.
      mlp_width: hidden width of the MLP.
      norm_eps: of every RMSNorm; released checkpoints differ, so there is no default.
      rope_theta: base of the rotary frequencies.
      attention_bias: biases of queries, keys and values.
      entropy_chunk: most query rows of attention weights held at once in the entropy layer.
      remat: `none`, `dots` or `full`, as in `remat.recomputed`, of every layer.
      attention: `kind` of `attention_with_entropy`.
      unroll: write the layers out instead of looping over them: slow to compile, easy to count.
      dtype: type of the matrix products and of the residual stream; norms, softmax and entropy are
        float32.
    """

    depth: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    norm_eps: float
    rope_theta: float
    attention_bias: bool = True
    entropy_chunk: int = 256
    remat: str = "none"
    attention: str = "auto"
    unroll: bool = False
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        """Make the layers as one loop, and one by one for the parameters of `apart`.

        Raises:
          ValueError: fewer than 2 layers, heads that do not divide, or an odd width of heads.
        """
        if self.depth < 2:
            raise ValueError(f"depth: got {self.depth}, allowed at least 2")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads: got {self.num_kv_heads}, allowed divisors of {self.num_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim: got {self.head_dim}, allowed even numbers")
        fields = dict(
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            mlp_width=self.mlp_width,
            norm_eps=self.norm_eps,
            entropy_layer=self.depth - 2,
            attention_bias=self.attention_bias,
            entropy_chunk=self.entropy_chunk,
            attention=self.attention,
            dtype=self.dtype,
        )
        # Of the parameters of `apart`; a submodule that is never called has none.
        self.apart = [CausalLayer(**fields) for _ in range(self.depth)]
        layer = CausalLayer
        if self.remat != "none":
            layer = nn.remat(layer, prevent_cse=False, policy=remat_policy(self.remat))
        scanned = nn.scan(
            layer,
            # One stacked array per parameter: the layer is compiled once, whatever the depth.
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=self.depth,
            unroll=self.depth if self.unroll else 1,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        self.layers = scanned(**fields)
        self.norm = RMSNorm(self.norm_eps)

    def __call__(
        self, x: jax.Array, *, padding: jax.Array | None = None, content: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Whole sequences, without a cache.

        Args:
          x: `[B, T, D]` inputs.
          padding: `[B]` integer, leading positions that hold nothing; None: 0. They still count in
            the positions, and what comes out there is finite and means nothing.
          content: `[B, T]` bool, positions whose keys count in the entropy; None: all.

        Returns:
          Hidden states `[B, T, D]` after the final norm, and entropy `[B, T]` float32 (Eq. 4), each
          row over the content it sees.
        """
        batch, rows = x.shape[:2]
        slots = jnp.broadcast_to(jnp.arange(rows), (batch, rows))
        padding = jnp.zeros(batch, jnp.int32) if padding is None else padding
        content = jnp.ones((batch, rows), bool) if content is None else content
        context = self._context(slots, rows, padding, content)
        h, entropy, _, _ = self._scan(x, None, None, context)
        return self.norm(h), entropy

    def advance(self, x: jax.Array, cache: Cache) -> tuple[jax.Array, jax.Array, Cache]:
        """Read further inputs behind what the cache holds.

        Args:
          x: `[B, Q, D]`, any Q; row b goes to slots `length[b] .. length[b] + Q - 1`. Slots beyond
            the cache are not written.
          cache: of `empty_cache`, or a result of this method.

        Returns:
          Hidden states `[B, Q, D]` after the final norm, entropy `[B, Q]` float32, and the cache
          with these inputs in it.
        """
        rows = x.shape[1]
        slots = cache.length[:, None] + jnp.arange(rows)[None]
        context = self._context(slots, cache.keys.shape[2], cache.padding, cache.content)
        h, entropy, keys, values = self._scan(x, cache.keys, cache.values, context)
        length = jnp.minimum(cache.length + rows, cache.keys.shape[2])
        return self.norm(h), entropy, cache.replace(keys=keys, values=values, length=length)

    def _context(self, slots, keys, padding, content) -> _Context:
        angles = slots[..., None] * inverse_frequencies(self.head_dim, self.rope_theta)[None, None]
        angles = jnp.concatenate([angles, angles], axis=-1)
        key = jnp.arange(keys)[None, None]
        # By slots, so that one rule serves whole sequences, a prompt and single tokens: what stands
        # behind a row's own slot is later or stale.
        mask = (key <= slots[..., None]) & (key >= padding[:, None, None])
        # Cast here and not after the rotation: released weights have seen cosines of their type.
        cos, sin = jnp.cos(angles).astype(self.dtype), jnp.sin(angles).astype(self.dtype)
        return _Context(cos, sin, mask, content, slots)

    def _scan(self, x, keys, values, context):
        carry = (x.astype(self.dtype), jnp.zeros(x.shape[:2], jnp.float32), keys, values)
        if self.has_variable("params", "apart_0"):
            for index, layer in enumerate(self.apart):
                carry, _ = layer(carry, jnp.int32(index), context)
            return carry
        return self.layers(carry, jnp.arange(self.depth), context)[0]
