"""NextStep-1's own flow head: what it makes of encodings, and its published loss."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from driftar_jax.heads import flow_token, randomness
from driftar_jax.heads.flow_token import FlowTokenHead
from driftar_jax.hosts.base import Model
from driftar_jax.hosts.nextstep import NextStep, guidance_at, normalise
from driftar_jax.layers.dense import of_batch


def sampler(
    host: NextStep,
    head: FlowTokenHead,
    settings: Any,
    num_tokens: int,
    params: Mapping[str, Any],
) -> Callable[[jax.Array, jax.Array, Callable[[jax.Array], jax.Array]], jax.Array]:
    """Return what the flow head makes of encodings.

    Returns:
      `(z [m * B, D], token, noise) -> [B, C]`: features, branch after branch; the number of the
      token, an int32 scalar or `[B]`; and its noise, `draw -> [B, C]`.
    """
    branches = settings.branches
    scales = [
        jnp.asarray(guidance_at(scale, num_tokens, settings.guidance_schedule))
        for scale in (settings.guidance, settings.guidance_image)
    ]

    def make(z, token, noise):
        token = jnp.asarray(token)
        # With one number per image, as in lookahead, every branch of an image needs its own copy.
        index = jnp.tile(token, branches) if token.ndim else token
        # One scale for all images, or one for each.
        text, image = (scale[token].reshape(-1, 1) for scale in scales)
        x = flow_token.flow_sample(
            head,
            params["head"],
            host.apply({"params": params["host"]}, z, index, method="condition"),
            noise,
            steps=settings.nfe,
            shift=settings.shift,
            guidance=text if branches > 1 else None,
            guidance_image=image if branches > 2 else None,
            corrected=settings.corrected,
        )
        return normalise(x) if settings.normalise else x

    return make


def noise_of(model: Model, settings: Any, token_keys: jax.Array):
    """Return `(token, draw) -> [B, C]`, the flow head's noise of every token and step.

    The temperature scales the noise of the steps; the start of the head is no step of it.
    """

    def noise(token, draw):
        eps = randomness.normal(token_keys[:, token], draw, model.images.token_dim)
        return eps * jnp.where(draw > 0, settings.temperature, 1.0)

    return noise


class Losses(NamedTuple):
    """Float32 scalars: the weighted sum, cross entropy of text, flow loss of image tokens."""

    total: jax.Array
    text: jax.Array
    image: jax.Array


def training_losses(
    host: NextStep,
    head: FlowTokenHead,
    params: dict,
    ids: jax.Array,
    tokens: jax.Array,
    noise: jax.Array,
    u: jax.Array,
    *,
    image_weight: jax.Array | None = None,
    padding: jax.Array | None = None,
    chosen: jax.Array | None = None,
    read: jax.Array | None = None,
    before: jax.Array | None = None,
    project: bool = True,
    floor: float = 0.0,
    weights: tuple[float, float] = (0.01, 1.0),
) -> Losses:
    """Compute NextStep-1's loss on whole sequences, in both published forms.

    Args:
      host: the backbone, `head` its flow head; `params` holds their trees `host` and `head`.
      ids: `[B, T]`, text and placeholders.
      tokens: `[B, M, C]`, clean image tokens.
      noise: `[R * B * K, C]` standard normal, R copies of the K tokens per image that the head is
        trained on, copy after copy.
      u: `[R * B * K]` standard normal, for the times.
      image_weight: `[B]`, which images count (source images of an edit do not); None: all.
      padding: `[B]` integer, leading positions that hold nothing.
      chosen: `[B, K]` int32, numbers of the tokens that the head is trained on; None: all, K = M.
      read: `[B, M, C]`, the image tokens as the backbone reads them; None: clean, as published.
        With `before`, those of all images of a row in their order.
      before: `[B]` int32, image tokens of a row that stand before those of `tokens`: a source
        image, which the head is not trained on. None: 0.
      project: whether conditions pass through `image_out_projector`, as they do in sampling. The
        Aug 2025 program trains without (`False`, with `floor=flow_token.MASK_FLOOR`); the released
        training code with.
      floor: added to the sum of the loss mask.
      weights: of text and image.

    Returns:
      Losses. Text counts where the next id is no placeholder and the position no padding.

    Raises:
      ValueError: `noise` or `u` is not of whole copies.
    """
    if chosen is None:
        chosen = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape[:2])
    (batch, count), channels = chosen.shape, tokens.shape[-1]
    copies = u.shape[0] // (batch * count)
    if u.shape != (copies * batch * count,) or noise.shape != (*u.shape, channels):
        raise ValueError(
            f"noise: got shapes {noise.shape} and {u.shape}, "
            f"allowed [R * {batch * count}, {channels}] and [R * {batch * count}]"
        )
    run = lambda *args, method=None, **kwargs: host.apply(  # noqa: E731
        {"params": params["host"]}, *args, method=method, **kwargs
    )
    # One call for text and image losses alike: each position predicts what follows it.
    encoding = run(ids, tokens if read is None else read, padding=padding)

    held = ids == host.placeholder
    # The slots of the placeholders, in order, come first; a stable sort keeps them so.
    order = jnp.argsort(~held, axis=1, stable=True)
    place = chosen if before is None else chosen + before[:, None]
    order = jnp.take_along_axis(order, place, axis=1)
    there = jnp.take_along_axis(held, order, axis=1)
    # The hidden state that predicts a token stands in the slot before it. A placeholder in slot 0
    # has none and is clamped; a sequence begins with text.
    z = jnp.take_along_axis(encoding.z, jnp.maximum(order - 1, 0)[..., None], axis=1)
    c = run(z, chosen, method="condition") if project else z
    weight = there.astype(jnp.float32)
    if image_weight is not None:
        weight = weight * image_weight.astype(jnp.float32)[:, None]

    target = jnp.take_along_axis(tokens, chosen[..., None], axis=1)[None]
    u = u.reshape(copies, batch, count)
    # Copies are the leading axis and images the second, so that a device keeps all copies of its
    # own images and the condition is broadcast instead of repeated.
    u, noise = (of_batch(a, 1) for a in (u, noise.reshape(*u.shape, channels)))
    look = lambda x, t: head.apply({"params": params["head"]}, x, t, c[None])  # noqa: E731
    rows = flow_token.flow_loss(look, target, noise, u)
    image = flow_token.masked_mean(rows, jnp.broadcast_to(weight[None], rows.shape), floor)

    following = ids[:, 1:]
    counts = following != host.placeholder
    if padding is not None:
        counts &= jnp.arange(ids.shape[1] - 1)[None] >= padding[:, None]
    logits = run(encoding.z[:, :-1], method="logits")
    # Cross entropy as logsumexp minus one logit: log-softmax would hold another `[B, T,
    # vocabulary]`.
    logit = jnp.take_along_axis(logits, following[..., None], axis=-1)[..., 0]
    nats = jax.nn.logsumexp(logits, axis=-1) - logit
    text = flow_token.masked_mean(nats, counts)
    return Losses(weights[0] * text + weights[1] * image, text, image)
