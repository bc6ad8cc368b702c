"""What `--dtype=bfloat16` changes in pictures of converted checkpoints; docs/api.md has a table."""

import converted
import pytest

from driftar_jax.conversion import drift_ar, mar
from driftar_jax.conversion import vae as vae_conversion
from driftar_jax.published import stored as published
from driftar_jax.vae import kl, stored

SIZES = dict(num_tokens=64, token_dim=4, num_classes=5, width=96, num_heads=4, buffer_size=8)
MAR = dict(**SIZES, encoder_depth=4, decoder_depth=4, mlp_ratio=4.0, head_width=96, head_depth=3)
DRIFT_AR = dict(**SIZES, depth=6, decoder_depth=4, draft_depth=1, mlp_ratio=4.0)
VAE = kl.KLVAE(32, (1, 2), 1, latent_channels=4, attention_levels=(1,))


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    return converted.convert(folder, "vae-kl16", stored.abstract(VAE), vae_conversion.RULES, {})


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("family", "bounds"), [("mar", (2, 20, 60)), ("drift_ar", (1, 10, 60))])
def test_pictures_of_both_types(call, vae, tmp_path, family, bounds):
    if family == "mar":
        abstract, rule_list = mar.abstract_params(*mar.modules(MAR)), mar.RULES
        words = ("--ar_steps=16", "--nfe=25", "--guidance=3")
    else:
        abstract = published.abstract(drift_ar.module(DRIFT_AR), phi=False)
        rule_list, words = drift_ar.RULES, ()
    out = converted.convert(tmp_path, family, abstract, rule_list, {}, num_heads=4)
    words = (f"--workdir={out}", f"--vae={vae}", "--num=64", "--batch_size=32", *words)
    *apart, spread = converted.types_apart(call, tmp_path, *words)
    print(family, apart, spread)  # with `-s`: the row of the table
    assert all(a < bound for a, bound in zip(apart, bounds, strict=True)) and spread > 50
