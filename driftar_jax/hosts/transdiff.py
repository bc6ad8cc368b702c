"""TransDiff: a class-conditional ViT encoder whose rows condition a flow transformer.

Source: TransDiff (arXiv 2506.09482), `models/transdiff.py` and `models/transdiff_mrar.py` of
TransDiff/TransDiff at 0081b3a. Rows are F copies of the class embedding (the buffer), then content.
With one group of content (the 1-step form) the encoder sees the class alone. With several (MRAR,
multi-reference autoregression) group 0 holds mask tokens and group g the image of step g - 1; the
attention is causal over `buffer | group 0 | group 1 | ...` and bidirectional inside each.
"""

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn

from driftar_jax.layers import stacked
from driftar_jax.layers.blocks import TransformerBlock, recomputed
from driftar_jax.layers.dense import dense, layer_norm
from driftar_jax.types import Encoding

# Released models on KL-16 latents: 16 channels, encoder rows 64 + 256. `num_tokens` is the grid of
# the velocity network, `head_depth` its blocks; it is as wide as the encoder.
_SIZES = {
    "base": dict(width=768, depth=24, num_heads=12, head_depth=12),
    "large": dict(width=1024, depth=32, num_heads=16, head_depth=16),
    "huge": dict(width=1280, depth=40, num_heads=16, head_depth=20),
}
_ALL = dict(num_rows=256, buffer_size=64, num_classes=1000, token_dim=16)
_ONE_STEP = dict(_ALL, groups=1, reference_dim=16, num_tokens=256)
_MRAR = dict(_ALL, groups=4, reference_dim=64, num_tokens=256)
PRESETS = {
    **{name: {**size, **_ONE_STEP} for name, size in _SIZES.items()},
    **{f"{name}_mrar": {**size, **_MRAR} for name, size in _SIZES.items()},
    "large_512": {**_SIZES["large"], **_ONE_STEP, "num_tokens": 1024},
}


@flax.struct.dataclass
class Cache:
    """Keys and values of the groups encoded so far.

    Rolling back is moving `length` back: what lies behind it is masked, then overwritten.

    Attributes:
      keys: one `[B, F + num_rows, H, K]` per block.
      values: like `keys`.
      length: `[B]` int32, groups that stand, 0..groups.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    length: jax.Array


class TransDiff(nn.Module):
    """Map class and reference images to features `z` and entropy `E`, in one forward: the backbone.

    Attributes:
      num_rows: content rows, all groups together; a multiple of `groups`.
      groups: AR steps; 1 is the 1-step form.
      reference_dim: features of one row of a reference image. In the 1-step form no row reads
        them, and the projection is kept for the sake of released weights.
      num_classes: classes; label -1 is the unconditional embedding.
      width: D.
      depth: blocks, at least 2: the last but one gives the entropy.
      num_heads: attention heads; divides `width`.
      buffer_size: F, class rows in front of the content.
      mlp_ratio: hidden width of a block's MLP over `width`.
      attention_dropout: in training, on attention weights.
      projection_dropout: in training, after projections.
      entropy_floor: floor of the weights in Eq. 4.
      remat: as in `layers.remat.recomputed`, of every block; caches are not for training.
      scan: as in `stacked.run`, with dropout.
      attention: as in `TransformerBlock`.
      dtype: type of the matrix products; norms, softmax and entropy stay float32.
    """

    num_rows: int
    groups: int
    reference_dim: int
    num_classes: int
    width: int
    depth: int
    num_heads: int
    buffer_size: int
    mlp_ratio: float = 4.0
    attention_dropout: float = 0.1
    projection_dropout: float = 0.1
    entropy_floor: float = 0.0
    remat: str = "none"
    scan: bool = False
    attention: str = "auto"
    dtype: jnp.dtype = jnp.float32

    @property
    def group_rows(self) -> int:
        """Count the content rows of one group."""
        return self.num_rows // self.groups

    def setup(self):
        """Make tables, projections and blocks.

        Raises:
          ValueError: a field is too small, or the groups do not divide the rows.
        """
        for field, least in (("depth", 2), ("buffer_size", 1), ("groups", 1)):
            if getattr(self, field) < least:
                raise ValueError(f"{field}: got {getattr(self, field)}, allowed at least {least}")
        if self.num_rows < 1 or self.num_rows % self.groups:
            raise ValueError(
                f"num_rows: got {self.num_rows}, allowed a multiple of {self.groups} groups"
            )

        def table(name, size, axis):
            init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (axis, "embed"))
            return self.param(name, init, (size, self.width))

        self.class_emb = table("class_emb", self.num_classes, "class")
        self.fake_latent = table("fake_latent", 1, None)
        # The 1-step form repeats one row; MRAR learns every row of its first group.
        self.mask_token = table("mask_token", 1 if self.groups == 1 else self.group_rows, None)
        rows = self.buffer_size + self.num_rows
        self.encoder_pos_embed = table("encoder_pos_embed", rows, "position")
        self.diffusion_pos_embed = table("diffusion_pos_embed", self.num_rows, "position")
        self.z_proj = dense(self.width, (None, "embed"), self.dtype)
        self.z_proj_ln = layer_norm()
        self.encoder_blocks = [
            TransformerBlock(
                self.width,
                self.num_heads,
                self.mlp_ratio,
                self.attention_dropout,
                self.projection_dropout,
                entropy_floor=self.entropy_floor,
                attention=self.attention,
                dtype=self.dtype,
            )
            for _ in range(self.depth)
        ]
        self.encoder_norm = layer_norm()

    def __call__(
        self,
        label: jax.Array,
        references: jax.Array | None = None,
        *,
        penultimate_mask: jax.Array | None = None,
        deterministic: bool = True,
    ) -> Encoding:
        """Make one backbone call over the groups 0..n.

        Args:
          label: `[B]` integer in -1..num_classes-1; -1 is unconditional, and keeps references.
          references: `[B, n, group_rows, reference_dim]` floating, the images of the first n
            steps, n in 0..groups-1; None: no image yet.
          penultimate_mask: `[rows, rows]` bool over F + (n + 1) group_rows rows, True where a row
            may look; narrows the attention of the last but one block alone (and so `E`).
          deterministic: False draws dropout from the `dropout` key.

        Returns:
          Encoding with `z [B, (n + 1) group_rows, D]` float32 and `E [B, (n + 1) group_rows]`
          (Eq. 4): content keys of the row's own and earlier groups.

        Raises:
          ValueError: a shape does not fit the fields.
        """
        content, positions = self.rows(label, references, penultimate_mask, deterministic)
        return Encoding(content.z + positions[None], content.entropy)

    def rows(
        self,
        label: jax.Array,
        references: jax.Array | None = None,
        penultimate_mask: jax.Array | None = None,
        deterministic: bool = True,
    ) -> tuple[Encoding, jax.Array]:
        """Run `__call__` up to where the positional table is added, and that table's rows.

        Returns:
          Encoding, and `[(n + 1) group_rows, D]` to be added to its `z`.
        """
        self._check_label(label)
        h = [self._buffer(label), self._first_group(label.shape[0])]
        if references is not None:
            h.append(self._embed(references, label.shape[0], self.groups - 1))
        h = self._place(jnp.concatenate(h, axis=1), self.encoder_pos_embed[None])
        size = h.shape[1]
        # Fewer references than steps need the top left corner of the mask only: earlier groups
        # never look at later ones, so their rows are those of the full call.
        mask = None if self.groups == 1 else self.allowed[:size, :size]
        last_but_one = mask
        if penultimate_mask is not None:
            if penultimate_mask.shape != (size, size):
                raise ValueError(
                    f"penultimate_mask: got shape {penultimate_mask.shape}, allowed {(size, size)}"
                )
            last_but_one = penultimate_mask if mask is None else penultimate_mask & mask

        def call(block, h):
            return recomputed(
                self.remat,
                lambda block, h, mask: block(h, mask=mask, deterministic=deterministic),
                block,
                h,
                mask,
            )

        # The entropy is read off the last block but one (Eq. 4); all others may use a fused
        # attention that never holds its weights.
        *plain, entropy_block, last = self.encoder_blocks
        scan = self.scan and not deterministic
        h = stacked.run(self, "encoder_blocks", plain, call, h, scan=scan)
        h, entropy = recomputed(
            self.remat,
            lambda block, h, mask: block.with_entropy(
                h, mask=mask, content_start=self.buffer_size, deterministic=deterministic
            ),
            entropy_block,
            h,
            last_but_one,
        )
        h = call(last, h)
        z = self.encoder_norm(h)[:, self.buffer_size :]
        return Encoding(z, entropy), self.diffusion_pos_embed[: z.shape[1]]

    @property
    def loops(self) -> dict[str, int]:
        """Count the blocks that `stacked.stack` may make one tree of; a cache keeps each apart."""
        return {"encoder_blocks": self.depth - 2} if self.groups == 1 else {}

    @property
    def allowed(self) -> jax.Array:
        """Return `[F + num_rows, F + num_rows]` bool: the keys that each row may see."""
        group = self._group_of_rows()
        return group[:, None] >= group[None, :]

    # --- the same groups one after another ------------------------------------------------------

    def begin(self, label: jax.Array) -> tuple[Encoding, Cache]:
        """Write the buffer and group 0 into a new cache.

        Args:
          label: `[B]` integer in -1..num_classes-1.

        Returns:
          Encoding of group 0, `z [B, group_rows, D]`, and a cache of length 1.
        """
        self._check_label(label)
        h = [self._buffer(label), self._first_group(label.shape[0])]
        encoding, cache = self._first_rows(jnp.concatenate(h, axis=1))
        encoding = jax.tree.map(lambda rows: rows[:, self.buffer_size :], encoding)
        return encoding, cache.replace(length=cache.length + 1)

    def begin_before(self, label: jax.Array) -> Cache:
        """Return the buffer alone in a new cache of length 0, from which `extend` goes on with
        group 0.
        """
        self._check_label(label)
        return self._first_rows(self._buffer(label))[1]

    def extend(self, references: jax.Array, cache: Cache) -> tuple[Encoding, Cache]:
        """Return the next groups on top of a cache, exactly as a call over all groups gives them.

        Args:
          references: `[B, m, group_rows, reference_dim]`, the images of the steps
            length-1..length+m-2 of each row of the batch, m in 1..groups; there is none of step -1,
            and it is not read.
          cache: of `begin`, `begin_before` or `extend`; lengths may differ within the batch. Groups
            beyond the last one are computed and not kept: their rows mean nothing.

        Returns:
          Encoding of the m groups, `z [B, m group_rows, D]`, and the cache, m groups longer (at
          most `groups`).

        Raises:
          ValueError: a shape does not fit, or the 1-step form is asked.
        """
        if self.groups == 1:
            raise ValueError(
                "groups: got 1, allowed at least 2 (the 1-step form has no next group)"
            )
        h = self._embed(references, cache.length.shape[0], self.groups)
        first = self._first_group(h.shape[0])
        # Rows of a batch may stand at different groups. Group 0 has no image before it and takes
        # the mask tokens, whatever reference was handed over in its place.
        none_yet = (cache.length == 0)[:, None, None]
        rows = self.group_rows
        h = h.at[:, :rows].set(jnp.where(none_yet, first.astype(h.dtype), h[:, :rows]))
        # Places are per row of the batch, since each has a length of its own.
        at = self.buffer_size + cache.length[:, None] * self.group_rows
        at = at + jnp.arange(h.shape[1])[None]
        encoding, cache = self._cached(h, at, cache)
        # A call near the end overshoots: its surplus groups were dropped from the cache and must
        # not count.
        length = jnp.minimum(cache.length + references.shape[1], self.groups)
        return encoding, cache.replace(length=length)

    def _first_rows(self, h: jax.Array) -> tuple[Encoding, Cache]:
        """Rows `h [B, Q, D]` from place 0 on, into a new cache."""
        batch, total = h.shape[0], self.buffer_size + self.num_rows
        empty = jnp.zeros((batch, total, self.num_heads, self.width // self.num_heads), self.dtype)
        cache = Cache((empty,) * self.depth, (empty,) * self.depth, jnp.zeros(batch, jnp.int32))
        at = jnp.broadcast_to(jnp.arange(h.shape[1])[None], h.shape[:2])
        return self._cached(h, at, cache)

    def _cached(self, h, at, cache):
        """Rows `h [B, Q, D]` at places `at [B, Q]`; places beyond the last row are dropped."""
        last = self.buffer_size + self.num_rows - 1
        # Places beyond the last are clamped for reading; their keys are dropped below, so that
        # nothing that counts ever sees them.
        h = self._place(h, self.encoder_pos_embed[jnp.minimum(at, last)])
        # Keys behind the rows of this call are of later groups, stale or empty: masked as such.
        mask = self.allowed[jnp.minimum(at, last)]
        batch = jnp.arange(h.shape[0])[:, None]
        keys, values, entropy = [], [], None
        for i, block in enumerate(self.encoder_blocks):
            q, k, v = block.heads(h)
            k = cache.keys[i].at[batch, at].set(k, mode="drop")
            v = cache.values[i].at[batch, at].set(v, mode="drop")
            # Asking for an entropy makes the attention hold its weights, so only that one block is
            # asked.
            start = self.buffer_size if i == self.depth - 2 else None
            h, rows = block.attend(h, q, k, v, mask, content_start=start)
            entropy = entropy if rows is None else rows
            keys.append(k)
            values.append(v)
        # Buffer rows have no place in this table; they are clamped to its first entry and cut off
        # later.
        content = jnp.clip(at, self.buffer_size, last) - self.buffer_size
        z = self.encoder_norm(h) + self.diffusion_pos_embed[content]
        return Encoding(z, entropy), Cache(tuple(keys), tuple(values), cache.length)

    # --- rows -----------------------------------------------------------------------------------

    def _group_of_rows(self) -> jax.Array:
        """`[F + num_rows]` int32: 0 for the buffer, 1 + g for content of group g.

        In the 1-step form all rows see each other, the buffer included.
        """
        if self.groups == 1:
            return jnp.zeros(self.buffer_size + self.num_rows, jnp.int32)
        # The buffer is a group of its own, before all others: it sees itself alone, so that its
        # keys do not depend on what follows and can be cached first.
        content = 1 + jnp.arange(self.num_rows, dtype=jnp.int32) // self.group_rows
        return jnp.concatenate([jnp.zeros(self.buffer_size, jnp.int32), content])

    def _buffer(self, label: jax.Array) -> jax.Array:
        """F copies of the class embedding, `[B, F, D]`."""
        rows = jnp.where(
            (label < 0)[:, None], self.fake_latent, self.class_emb[jnp.maximum(label, 0)]
        )
        return jnp.repeat(rows[:, None], self.buffer_size, axis=1)

    def _first_group(self, batch: int) -> jax.Array:
        """Mask tokens, `[B, group_rows, D]`."""
        # A first call without references would leave the projection without parameters, and a
        # checkpoint that has them would not fit.
        if self.is_initializing():
            self.z_proj(jnp.zeros((1, self.reference_dim)))
        return jnp.broadcast_to(self.mask_token[None], (batch, self.group_rows, self.width))

    def _embed(self, references: jax.Array, batch: int, most: int) -> jax.Array:
        """`[B, n, group_rows, reference_dim]` -> `[B, n * group_rows, D]`, n at most `most`."""
        allowed = (batch, self.group_rows, self.reference_dim)
        got = references.shape
        if references.ndim != 4 or (got[0], *got[2:]) != allowed or got[1] > most:
            raise ValueError(
                f"references: got shape {got}, allowed [{batch}, 0..{most}, "
                f"{self.group_rows}, {self.reference_dim}]"
            )
        return self.z_proj(references.reshape(batch, -1, self.reference_dim))

    def _place(self, h: jax.Array, positions: jax.Array) -> jax.Array:
        """Adds positions (cut to the rows there are) and normalises."""
        return self.z_proj_ln(h + positions[:, : h.shape[1]]).astype(self.dtype)

    def _check_label(self, label: jax.Array) -> None:
        if label.ndim != 1:
            raise ValueError(f"label: got shape {label.shape}, allowed [B]")


def class_table(host: TransDiff, params: dict, *, batch: int = 16) -> Encoding:
    """Return encodings that depend on the class alone: all of the 1-step form, group 0 of MRAR.

    Args:
      host: the module; `params` its parameter tree.
      batch: classes in one backbone call.

    Returns:
      Encoding with `z [num_classes + 1, group_rows, D]` and `E [num_classes + 1, group_rows]`:
      row c is class c, the last one unconditional, so that label -1 finds it. (In float32 a
      released model takes `256 D` numbers a class: 1 MiB at D = 1024.)
    """
    labels = jnp.arange(host.num_classes + 1)
    labels = jnp.where(labels == host.num_classes, -1, labels)
    return jax.lax.map(
        lambda label: jax.tree.map(lambda x: x[0], host.apply({"params": params}, label[None])),
        labels,
        batch_size=batch,
    )
