"""The inception score against its definition, and in a stream."""

import numpy as np
import pytest
import scipy.special
import scipy.stats

from driftar_jax.evaluation import inception_score


def _by_definition(logits, splits):
    p = scipy.special.softmax(logits.astype(np.float64), axis=1)
    borders = [i * len(p) // splits for i in range(splits + 1)]
    scores = []
    for first, last in zip(borders[:-1], borders[1:], strict=True):
        part = p[first:last]
        divergence = scipy.stats.entropy(part, part.mean(axis=0)[None], axis=1)
        scores.append(np.exp(divergence.mean()))
    return np.mean(scores), np.std(scores)


@pytest.mark.parametrize("splits", [1, 3, 5])
def test_the_score_follows_its_definition(splits):
    logits = np.random.default_rng(0).normal(size=(17, 6)) * 3
    np.testing.assert_allclose(
        inception_score.inception_score(logits, splits), _by_definition(logits, splits), rtol=1e-12
    )


def test_a_stream_gives_the_score_of_the_whole():
    logits = np.random.default_rng(1).normal(size=(17, 6)) * 3
    sums = inception_score.ScoreSums(17, 6, splits=3)
    for part in np.split(logits, [2, 2, 11]):
        sums.add(part)
    np.testing.assert_allclose(
        sums.result(), inception_score.inception_score(logits, 3), rtol=1e-13
    )


def test_the_borders_of_the_score():
    sure = 1000.0 * np.eye(5)
    np.testing.assert_allclose(inception_score.inception_score(sure, 1), (5, 0))
    np.testing.assert_allclose(
        inception_score.inception_score(np.zeros((8, 5)), 2), (1, 0), atol=1e-12
    )


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"splits: got 10, allowed 1 to 4"):
        inception_score.inception_score(np.zeros((4, 3)))
    sums = inception_score.ScoreSums(4, 3, splits=2)
    sums.add(np.zeros((3, 3)))
    with pytest.raises(ValueError, match="logits: got 3 images, allowed 4"):
        sums.result()
    with pytest.raises(ValueError, match=r"allowed \[at most 1, 3\]"):
        sums.add(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"allowed \[at most 1, 3\]"):
        sums.add(np.zeros((1, 4)))
