"""What the data decides of a run, with and without the data."""

import pytest

from configs import drift_nextstep_14b, mar_base, nextstep_14b, nextstep_small
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


@pytest.mark.parametrize("module", [nextstep_14b, drift_nextstep_14b])
def test_random_weights_of_text_hosts_on_absent_latents(module):
    loaded, told = timing.open_subject(small_14b(module), None)
    assert loaded.model.images.text.vocab_size == 152064 and "random" in told
    assert loaded.params["host"]["embed_tokens"].shape[0] == 152064
