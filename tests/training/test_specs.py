"""What the data decides of a run, with and without the data."""

import json
import types

import pytest

from configs import drift_nextstep_14b, mar_base, nextstep_14b, nextstep_small
from driftar_jax.data import captions
from driftar_jax.reports import timing
from driftar_jax.training import specs


def small_14b(module):
    """Latents with captions that lie on no machine of ours, under the smallest host."""
    settings = module.get_config("tiny")
    full = module.get_config()
    settings.data.name = full.data.name
    settings.data.image_size, settings.data.patch_size = 8, 4
    settings.sample.ar_steps = 4
    settings.mask.tokens_per_image = 0
    return settings


def test_absent_latents_with_captions_are_assumed():
    spec = specs.image_spec(nextstep_14b.get_config())
    assert spec.image_shape == (32, 32, 16) and spec.num_tokens == 256 and spec.token_dim == 64
    assert spec.num_classes == 1000 and spec.text.vocab_size == 152064 and spec.text.length == 128
    plain = mar_base.get_config()
    assert plain.data.name.startswith("latents:") and specs.image_spec(plain).text is None


@pytest.mark.slow  # test_own fits them too
def test_captions_of_a_set_are_fitted(data_dir):
    spec = specs.image_spec(nextstep_small.get_config("tiny"))
    assert spec.text.vocab_size > 4 and len(spec.text.suffix) > 0 and spec.num_classes > 1


def test_a_converted_start_is_known_whatever_its_path_is_written_like(tmp_path, monkeypatch):
    """Else the run would take a vocabulary of its own, without a word."""
    (tmp_path / "host").mkdir()
    facts = {"task": "nextstep", "host": {"vocab_size": 7}}
    (tmp_path / "host" / "config.json").write_text(json.dumps(facts))
    monkeypatch.setenv("HOME", str(tmp_path))
    read = []
    monkeypatch.setattr(captions, "read_inherited", lambda *words: read.append(words))
    monkeypatch.setattr(captions, "fit", lambda *words, **more: None)
    settings = nextstep_small.get_config("tiny")
    source = types.SimpleNamespace(captions=["a"])
    for path in ("~/host", str(tmp_path / "host"), "$HOME/host"):
        settings.init_from = path
        specs.fit_text(settings, source)
    assert read == [(str(tmp_path / "host"), 7)] * 3
    for path in ("", "~/none", "gs://bucket/host"):  # refused where its weights are read
        settings.init_from = path
        specs.fit_text(settings, source)
    assert len(read) == 3


@pytest.mark.parametrize("module", [nextstep_14b, drift_nextstep_14b])
def test_random_weights_of_text_hosts_on_absent_latents(module):
    loaded, told = timing.open_subject(small_14b(module), None)
    assert loaded.model.images.text.vocab_size == 152064 and "random" in told
    assert loaded.params["host"]["embed_tokens"].shape[0] == 152064
