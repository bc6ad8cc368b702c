"""NextStep-1 learns edits: source pictures in the rows, the loss and the way back from sampling."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from configs import nextstep_small
from driftar_jax import model
from driftar_jax.data import captions
from driftar_jax.data.pixels import patchify
from driftar_jax.hosts import nextstep_encodings, nextstep_own
from driftar_jax.sampling import batches, generator, texts
from driftar_jax.sampling.conditions import Request
from driftar_jax.training import tasks

# Pictures of 3 x 3 tokens of 4 channels; a source is 9 placeholders between its marks.
GRID, C, N = (3, 3), 4, 9
TEXTS = ["red fox", "blue <image> sits", "a red bird", "bird"]
FITTED = captions.fit("set", TEXTS, GRID, 4, edits=True)
SPEC = FITTED.spec
IMAGES = model.ImageSpec((6, 6, 1), ("a",), patch_size=2, text=SPEC)
DRAWN = np.random.default_rng(0).integers(0, 256, (2, 4, *IMAGES.image_shape), np.uint8)
BATCH = {"image": DRAWN[0], "source": DRAWN[1], "label": np.zeros(4, np.int32)}
BATCH["text"] = FITTED.rows
BOOK = captions.Book(
    captions.WordTokenizer(FITTED.tokenizer), SPEC, GRID, (tuple(TEXTS),), DRAWN[1]
)


@functools.cache
def _task():
    config = nextstep_small.get_config("tiny")
    config.host.update(width=12, num_heads=2, mlp_width=14)
    config.mask.tokens_per_image = 3
    task = tasks.build(config, IMAGES)
    return config, task, tiny.params(task.init, scale=0.3)


def _contexts(**changes):
    return dataclasses.replace(_task()[1].contexts, **{"drop": 0.0, "unknown": 0.0, **changes})


def test_rows_hold_the_source_where_the_text_says():
    rows = FITTED.rows[:, 1:]
    assert rows.shape[1] == SPEC.prompt and SPEC.length == 4 + len(SPEC.source_ids)
    assert ((rows == SPEC.placeholder).sum(axis=1) == N).all()
    begin = [row.tolist().index(SPEC.placeholder) for row in rows]
    before = [b - len(SPEC.suffix) - p for b, p in zip(begin, FITTED.rows[:, 0], strict=True)]
    assert before == [0, 1, 0, 0]  # words before the source
    assert model.ImageSpec((6, 6, 1), ("a",), 2, text=type(SPEC).from_json(SPEC.as_json()))
    assert type(SPEC).from_json(SPEC.as_json()) == SPEC
    with pytest.raises(ValueError, match="of 20 tokens, allowed at most 19"):
        BOOK.rows(["a red bird sits bird"])


def test_words_are_hidden_and_sources_are_not():
    rows = _contexts(unknown=0.9).conditions(jax.random.key(0), BATCH)
    changed = np.asarray(rows["ids"]) != FITTED.rows[:, 1:]
    assert changed.sum() > 4 and changed.sum(axis=1).max() <= 4
    assert ((np.asarray(rows["ids"]) == SPEC.placeholder).sum(axis=1) == N).all()
    np.testing.assert_allclose(
        rows["source"], patchify(jnp.asarray(BATCH["source"]) / 127.5 - 1.0, 2), atol=1e-6
    )


def test_some_lose_their_words_and_others_everything():
    rows = _contexts(drop=0.5).conditions(jax.random.key(3), jax.tree.map(_many, BATCH))
    read = np.concatenate([rows["padding"][:, None], rows["ids"]], axis=1)
    kinds = np.select(
        [
            (read == row).all(axis=1)
            for row in (captions.nothing(SPEC), captions.source_alone(SPEC))
        ],
        [0, 1],
        2,
    )
    assert np.bincount(kinds, minlength=3).min() > 5
    np.testing.assert_array_equal(kinds == 0, rows["dropped"])
    np.testing.assert_array_equal(read[kinds == 2], _many(FITTED.rows)[kinds == 2])


def _many(a):
    return np.tile(a, (16, *[1] * (a.ndim - 1)))


def test_the_head_learns_the_target_alone():
    """The loss is that of a sequence with both images, of the second one's tokens."""
    _, task, params = _task()
    contexts = _contexts()
    tokens = patchify(jnp.asarray(BATCH["image"]) / 127.5 - 1.0, 2)
    rows, totals = contexts.draw_own(jax.random.key(1), tokens, BATCH, 1)
    held = jnp.full(tokens.shape[:2], SPEC.placeholder, jnp.int32)
    end = jnp.full((4, 1), SPEC.end_image, jnp.int32)

    @jax.jit
    def both(params, rows):
        loss, found = contexts.own_terms(params, rows, totals, None)
        want = nextstep_own.training_losses(
            task.parts.host,
            task.parts.head,
            params,
            jnp.concatenate([rows["ids"], held, end], axis=1),
            jnp.concatenate([rows["source"], tokens], axis=1),
            rows["noise"].reshape(-1, C),
            rows["u"].reshape(-1),
            padding=rows["padding"],
            chosen=rows["positions"] + N,
        )
        return loss, found, want

    loss, found, want = both(params, rows)
    np.testing.assert_allclose(found["image"], want.image, rtol=1e-5)
    np.testing.assert_allclose(found["text"], want.text, rtol=1e-5)
    words = (rows["ids"].shape[1] - rows["padding"]).sum() - 4 * N
    assert totals["words"] == words and np.isfinite(loss)


def test_sampling_reads_what_training_has_shown():
    """Prompt, cache and one token after another give the encodings of one call over all."""
    config, task, params = _task()
    parts, host = task.parts, task.parts.host
    drawn = generator.Generator(
        config, parts, params, 0, {}, batches.as_pixels, texts.Captions(BOOK)
    )
    settings = drawn.settings(guidance=2.0, guidance_image=1.5)
    asked = ["red fox", "bird"]
    prompt = drawn.conditions(asked, 0, settings, Request(sources=list(DRAWN[1][:2])))
    assert prompt.rows.shape == (2, 3, 1 + SPEC.prompt) and prompt.sources.shape == (2, N, C)
    # Texts of the book bring their own sources.
    alone = drawn.conditions(["red fox", TEXTS[1]], 0, settings)
    np.testing.assert_array_equal(
        alone.sources,
        drawn.conditions(asked, 0, settings, Request(sources=list(DRAWN[1][:2]))).sources,
    )
    ids, padding, sources = nextstep_encodings.by_branch(parts, settings, prompt)
    made = patchify(jnp.asarray(DRAWN[0][:2]) / 127.5 - 1.0, 2)
    made = jnp.tile(made, (3, 1, 1))

    @jax.jit
    def both(params, sources):
        cache = host.apply(
            {"params": params["host"]}, SPEC.prompt + N, padding, SPEC.prompt, method="empty_cache"
        )
        apply = functools.partial(host.apply, {"params": params["host"]})
        first, cache = apply(ids, cache, sources, method="prefill")
        rest, _ = apply(made[:, :-1], cache, method="advance")
        joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), first, rest)
        return joined, nextstep_encodings.encodings(parts, params, ids, padding, made, sources)

    walked, whole = both(params, sources)
    np.testing.assert_allclose(walked.z, whole.z, atol=2e-4)
    np.testing.assert_allclose(walked.entropy, whole.entropy, atol=1e-4)
    # Branch after branch: both images with everything, with the source alone, with nothing.
    _, other = both(params, -sources)
    moved = np.abs(np.asarray(whole.z - other.z)).max(axis=(1, 2))
    assert (moved[:4] > 1e-3).all() and (moved[4:] == 0).all()


def test_requests_that_are_no_edits_are_one_line():
    config, task, params = _task()
    drawn = generator.Generator(
        config, task.parts, params, 0, {}, batches.as_pixels, texts.Captions(BOOK)
    )
    with pytest.raises(ValueError, match="image: got '1 images', allowed one for each of 2 texts"):
        drawn.conditions(["bird", "bird"], 0, None, Request(sources=[DRAWN[1][0]]))
    with pytest.raises(ValueError, match="image: got 'float32 .*', allowed uint8"):
        drawn.conditions(["bird"], 0, None, Request(sources=[np.zeros((6, 6, 1), np.float32)]))
    with pytest.raises(ValueError, match="labels: got 'shape .*', allowed texts or classes"):
        drawn.conditions(FITTED.rows, 0)
    with pytest.raises(ValueError, match="image: got None, allowed a source picture"):
        drawn.conditions(["red bird"], 0)
    fitted = captions.fit("set", ["red fox"], GRID, 4)
    book = captions.Book(
        captions.WordTokenizer(fitted.tokenizer), fitted.spec, GRID, (("red fox",),)
    )
    images = dataclasses.replace(IMAGES, text=fitted.spec)
    parts = dataclasses.replace(task.parts, images=images)
    plain = dataclasses.replace(drawn, model=parts, reader=texts.Captions(book))
    with pytest.raises(ValueError, match="image: got '1 images', allowed none"):
        plain.sized(Request(sources=[DRAWN[1][0]]))
    settings = plain.settings(guidance=2.0, guidance_image=2.0)
    with pytest.raises(ValueError, match="guidance_image: got 2.0, allowed 1: this checkpoint"):
        plain.conditions(["fox"], 0, settings)
