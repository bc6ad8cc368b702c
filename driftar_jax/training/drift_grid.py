"""Drift-AR on a host that makes the whole grid in one step: class rows, a bank, a feature space.

Rows of the field are (class, vector of phi), samples are draws (DESIGN section 4). Sources: the
training step of arXiv 2602.04770 (appendix A) on the prior and decoder of Drift-AR.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from driftar_jax import entropy, model
from driftar_jax.drift import bank as bank_lib
from driftar_jax.drift import feature_loss, laplace
from driftar_jax.drift.fields import Weights
from driftar_jax.features import maps
from driftar_jax.training import losses
from driftar_jax.training.tokens import tokenise

# Density alpha^-3 of the guidance scale, and the share of the rows that learn without guidance
# (the laws of arXiv 2602.04770).
SCALE_POWER, UNGUIDED = 3.0, 0.5


@dataclasses.dataclass(frozen=True)
class GuidanceLaw:
    """Hold the law of a row's guidance scale alpha: density `alpha^-power` on [low, high], or none.

    Attributes:
      low: at least 1.
      high: at least `low`.
      power: 0 is uniform, 1 log-uniform; more favours small scales.
      plain: share of the rows whose scale is 1 instead.
    """

    low: float = 1.0
    high: float = 1.0
    power: float = SCALE_POWER
    plain: float = 0.0

    @property
    def varies(self) -> bool:
        """Say whether the decoder has to be told the scale."""
        return self.high > 1.0

    def draw(self, key: jax.Array, rows: int) -> jax.Array:
        """Return `[rows]` float32."""
        key_scale, key_plain = jax.random.split(key)
        u = jax.random.uniform(key_scale, (rows,), dtype=jnp.float32)
        if self.power == 1.0:
            alpha = self.low * (self.high / self.low) ** u
        else:
            p = 1.0 - self.power
            # Inverse transform sampling of the density alpha^-power on [low, high]; power 1 is its
            # limit above.
            alpha = (self.low**p + u * (self.high**p - self.low**p)) ** (1.0 / p)
        plain = jax.random.bernoulli(key_plain, jnp.float32(self.plain), (rows,))
        return jnp.where(plain, 1.0, alpha)


@dataclasses.dataclass(frozen=True)
class Samples:
    """How many samples meet in a row, and in how many rows a step.

    Attributes:
      classes: rows L, the labels of the first L images of a batch.
      draws: G, of the decoder.
      positives: P, real ones of the row's class.
      unconditional: M, real ones of any class; they carry the guidance. 0: none.
    """

    classes: int
    draws: int
    positives: int
    unconditional: int


@dataclasses.dataclass(frozen=True)
class DriftGridTask:
    """Prior and one-step decoder of a whole grid, in two phases.

    Phase I trains host, prior and decoder by `L_drift / keys + L_mu`; Phase II the decoder alone by
    `L_drift / keys`. The sources sum the keys of phi; dividing by their number is a constant that
    AdamW does not see, and lets `L_mu` weigh as much as one key.

    The extra state holds the bank and the frozen parameters of phi: neither is averaged or decayed.

    Attributes:
      parts: host, prior and decoder; no draft head, for there is no next AR step.
      field: `laplace` or `energy`.
      phi: the feature space; None where nothing is trained.
      phi_params: its frozen parameters; None where it has none.
      samples: how many meet in a row.
      guidance: law of the scale that the decoder learns.
      bank_size: real samples kept of every class.
      bank_dtype: `bfloat16` or `float32`.
      freeze_at: share of the run after which the decoder alone learns.
      steps: length of the run.
      chunk: rows through decoder and phi at a time, a divisor of L; 0: all.
      label_drop: share of the rows that learn the data without a label.
      mirror: of latents; pixels were mirrored when they were read.
      block_bytes: as for `laplace.force`.
    """

    parts: model.Model
    field: str
    phi: maps.Features | None
    phi_params: Any
    samples: Samples
    guidance: GuidanceLaw
    bank_size: int
    bank_dtype: str
    freeze_at: float
    steps: int
    chunk: int = 0
    label_drop: float = 0.0
    mirror: bool = False
    block_bytes: int = laplace.BLOCK_BYTES
    tracked: tuple[str, ...] = ("entropy_mean", "entropy_square")

    @property
    def freeze_step(self) -> int:
        """Return the first step of Phase II."""
        return losses.freeze_step(self.steps, self.freeze_at)

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Return fresh parameters of host, prior and decoder."""
        images, parts = self.parts.images, self.parts
        keys = jax.random.split(key, 3)
        label = jnp.zeros(1, jnp.int32)
        host = parts.host.init(keys[0], label)["params"]
        z = jnp.zeros((1, images.num_tokens, parts.host.width))
        x, e = jnp.zeros((1, images.num_tokens, images.token_dim)), jnp.zeros(z.shape[:2])
        prior = parts.prior.init(keys[1], z, e, keys[:1])["params"]
        alpha = jnp.ones(1) if self.guidance.varies else None
        decoder = parts.decoder.init(keys[2], x[:, :, None], x, e, z, e, alpha)["params"]
        return {"host": host, "prior": prior, "decoder": decoder}

    def init_extra(self, key: jax.Array) -> dict[str, Any]:
        """Return an empty bank, and the frozen parameters of phi."""
        images = self.parts.images
        shape = (images.num_tokens, images.token_dim)
        bank = bank_lib.empty(images.num_classes, self.bank_size, shape, self.bank_dtype)
        return {"bank": bank} | ({} if self.phi_params is None else {"phi": self.phi_params})

    def update_extra(self, extra, batch, key):
        """Return the extra state with the batch pushed into the bank."""
        tokens = tokenise(batch, key, patch_size=self.parts.images.patch_size, mirror=self.mirror)
        return {**extra, "bank": bank_lib.push(extra["bank"], batch["label"], tokens)}

    def trainable(self, frozen: bool) -> tuple[str, ...]:
        """Return the groups that learn in a phase."""
        return ("decoder",) if frozen else ("host", "prior", "decoder")

    def loss(self, params, batch, key, step, frozen, extra):
        """Return the loss of a phase, a float32 scalar, and the metrics; see `Task.loss`."""
        keys = dict(zip(_KEYS, jax.random.split(key, len(_KEYS)), strict=True))
        # A batch is a random one, so its first rows are as good as any.
        label = batch["label"][: self.samples.classes]
        rows = label.shape[0]
        dropped = jax.random.bernoulli(keys["drop"], jnp.float32(self.label_drop), (rows,))
        # A row without a label has nothing to be guided towards.
        alpha = jnp.where(dropped, 1.0, self.guidance.draw(keys["alpha"], rows))
        encoding = self.parts.host.apply(
            {"params": params["host"]},
            jnp.where(dropped, -1, label),
            # Phase II freezes the backbone, so it is run as sampling will run it: without dropout.
            deterministic=frozen,
            rngs=None if frozen else {"dropout": keys["dropout"]},
        )
        mu, std = self.parts.prior.apply(
            {"params": params["prior"]},
            encoding.z,
            encoding.entropy,
            jax.random.split(keys["shuffle"], rows),
        )
        positives, present = self._positives(extra["bank"], label, dropped, keys["positives"])
        negatives, weights = self._negatives(extra["bank"], alpha, present, keys["negatives"])
        phi = extra.get("phi")
        eps = jax.random.normal(
            keys["eps"], (*mu.shape[:2], self.samples.draws, mu.shape[2]), dtype=jnp.float32
        )

        def make(row):
            x = self._decode(params, *row)
            return x, self._features(phi, x)

        # Of each chunk only the inputs are kept for the gradient.
        x, features = self._in_chunks(jax.checkpoint(make), (encoding, mu, std, alpha, eps))

        def compare(grids):
            return jax.lax.stop_gradient(self._in_chunks(lambda g: self._features(phi, g), grids))

        # Real samples need features and no gradient: nothing of their forward pass is kept.
        real = compare(positives)
        any_class = None
        if negatives is not None:
            any_class = compare(negatives)
        summed, info = feature_loss.loss(
            self.field, features, real, any_class, weights, block_bytes=self.block_bytes
        )
        l_drift = summed / len(features)
        metrics = {
            "drift": l_drift,
            "spread": _spread(x, None) / jnp.maximum(_spread(positives, present), 1e-6),
            "bank_present": present.mean(dtype=jnp.float32),
            "sigma_mean": std.mean(),
            "entropy_mean": encoding.entropy.mean(),
            "entropy_square": jnp.square(encoding.entropy).mean(),
            **_named(self.field, info["strength"]),
        }
        if frozen:
            return l_drift, metrics
        # Against every real grid of the class, for a row has no grid that is its own: the mean of
        # the prior goes to the class mean. Summed over the C channels, averaged over tokens.
        l_mu = _mean_of_present(
            jnp.square(mu[:, None] - positives).sum(axis=-1).mean(axis=-1), present
        )
        return l_drift + l_mu, metrics | {"mu": l_mu}

    def _in_chunks(self, function, rows):
        """`function` of trees `[L, ...]`, `chunk` rows at a time; it gives the same."""
        count = len(jax.tree.leaves(rows)[0])
        if self.chunk in (0, count):
            return function(rows)

        def split(a):
            # Every (L / chunk)-th row: rows split over devices then stay where they are.
            return jnp.swapaxes(a.reshape(self.chunk, -1, *a.shape[1:]), 0, 1)

        def joined(a):
            return jnp.swapaxes(a, 0, 1).reshape(count, *a.shape[2:])

        return jax.tree.map(joined, jax.lax.map(function, jax.tree.map(split, rows)))

    def _decode(self, params, encoding, mu, std, alpha, eps):
        """G decoded grids `[L, G, N, C]` of noise `[L, N, G, C]`."""
        x0 = entropy.prior_draw(mu[:, :, None], std[:, :, None], eps)  # Eq. 7
        x = self.parts.decoder.apply(
            {"params": params["decoder"]},
            x0,
            mu,
            std,
            encoding.z,
            encoding.entropy,
            alpha if self.guidance.varies else None,
        )
        return jnp.moveaxis(x, 2, 1)

    def _positives(self, bank, label, dropped, key):
        """Real grids `[L, P, N, C]` of each row's class and which of them there are.

        A row without a label learns the data as a whole.
        """
        key_class, key_any = jax.random.split(key)
        of_class, present = bank_lib.draw(bank, key_class, label, self.samples.positives)
        if not self.label_drop:
            return of_class, present
        every, there = bank_lib.draw_any(bank, key_any, label.shape[0], self.samples.positives)
        return (
            jnp.where(dropped[:, None, None, None], every, of_class),
            jnp.where(dropped[:, None], there, present),
        )

    def _negatives(self, bank, alpha, present, key):
        """Real grids `[L, M, N, C]` of any class, and the weights of a row."""
        weights = Weights(positives_present=present)
        if not self.samples.unconditional:
            return None, weights
        negatives, there = bank_lib.draw_any(bank, key, alpha.shape[0], self.samples.unconditional)
        count = jnp.maximum(there.sum(axis=1), 1)
        # The G - 1 other draws push with weight 1 each; the unconditional ones together weigh
        # (alpha - 1) times that, however many of them the bank holds.
        each = (alpha - 1.0) * (self.samples.draws - 1) / count
        weights = weights.replace(
            negatives=jnp.broadcast_to(each[:, None], there.shape), negatives_present=there
        )
        return negatives, weights

    def _features(self, phi_params, grids):
        """`[L, samples, N, C]` -> `{key: [L, samples, V, S]}`."""
        rows = grids.shape[:2]
        vectors = self.phi(phi_params, grids.reshape(-1, *grids.shape[2:]))
        return {name: v.reshape(*rows, *v.shape[1:]) for name, v in vectors.items()}


_KEYS = ("drop", "alpha", "dropout", "shuffle", "eps", "positives", "negatives")


def _named(field: str, strength: jax.Array) -> dict[str, jax.Array]:
    """Strengths by width, as the log shows them: they fall in training, the loss does not."""
    if field == "energy":
        return {"strength": strength[0]}
    return {f"strength_{w:g}": strength[i] for i, w in enumerate(laplace.WIDTHS)}


def _mean_of_present(values: jax.Array, present: jax.Array) -> jax.Array:
    mask = present.astype(jnp.float32)
    return jnp.sum(values * mask) / jnp.maximum(jnp.sum(mask), 1.0)


def _spread(grids: jax.Array, present: jax.Array | None) -> jax.Array:
    """Mean squared deviation of grids `[L, samples, N, C]` from their row's mean: collapse is 0."""
    mask = jnp.ones(grids.shape[:2]) if present is None else present.astype(jnp.float32)
    mask = mask[:, :, None, None]
    count = jnp.maximum(mask.sum(axis=1, keepdims=True), 1.0)
    mean = (grids * mask).sum(axis=1, keepdims=True) / count
    error = jnp.square(grids - mean).mean(axis=(2, 3), keepdims=True) * mask
    # Unbiased, so that G and P may differ.
    return error.sum() / jnp.maximum((count - 1.0).sum(), 1.0)


def build(
    config: Any, parts: model.Model, space: tuple[maps.Features, Any] | None
) -> DriftGridTask:
    """Build the task of a checked config.

    Args:
      config: of task `drift` on a host of whole grids.
      parts: its modules.
      space: phi and its parameters, or None where nothing is trained.

    Raises:
      ValueError: the bank is larger than allowed.
    """
    c, images = config.drift, parts.images
    shape = (images.num_tokens, images.token_dim)
    bank_lib.check_size(
        images.num_classes,
        config.bank.size,
        shape,
        config.bank.dtype,
        limit_gib=config.bank.limit_gib,
    )
    phi, phi_params = (None, None) if space is None else space
    return DriftGridTask(
        parts,
        field=c.field,
        phi=phi,
        phi_params=phi_params,
        samples=Samples(c.classes, c.draws, c.positives, c.unconditional),
        guidance=GuidanceLaw(high=c.guidance_max, power=SCALE_POWER, plain=UNGUIDED),
        bank_size=config.bank.size,
        bank_dtype=config.bank.dtype,
        freeze_at=config.loss.freeze_at,
        steps=config.train.steps,
        chunk=c.chunk,
        label_drop=config.host.label_drop,
        mirror=config.data.flip,
    )
