"""A converted NextStep-1 is benchmarked and exported, and a Drift-AR run starts from it."""

import json

import converted
import jax
import numpy as np
import pytest

import driftar_jax
from configs import drift_nextstep
from driftar_jax.conversion import nextstep, nextstep_vae
from driftar_jax.data import captions, pipeline, prompts, subwords
from driftar_jax.hosts.nextstep_stored import abstract_params, modules, unstacked
from driftar_jax.sampling import load
from driftar_jax.vae import stored
from driftar_jax.vae.f8 import F8VAE

CONFIG = drift_nextstep.get_config("tiny")
SPECIAL = [*prompts.TOKENS.values(), prompts.AREA]
# Factor 2, 3 latent channels and patches of 4: tokens of 48 numbers, as of 4x4 pixels.
VAE = F8VAE(
    True, 4, 1.0, 0.0, True, channels=32, multipliers=(1, 2), num_res_blocks=1, latent_channels=3
)
VAE_OFFICIAL = {
    "encoder_norm": True,
    "psz": 4,
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
    "deterministic": True,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, data_dir):
    """A converted host with its tokenizer, and an autoencoder."""
    texts = pipeline.open_data(CONFIG, "train").captions
    file = subwords.vocabulary_of(texts, SPECIAL)
    made = subwords.SubwordTokenizer(file)
    host, rows = CONFIG.host, len(made.vocabulary) + 3
    fields = dict(
        vocab_size=rows,
        placeholder=made.id_of(prompts.TOKENS["placeholder"]),
        token_dim=48,
        width=host.width,
        depth=host.depth,
        num_heads=host.num_heads,
        num_kv_heads=host.num_kv_heads,
        head_dim=host.width // host.num_heads,
        mlp_width=host.mlp_width,
        norm_eps=host.norm_eps,
        rope_theta=host.rope_theta,
        attention_bias=True,
        head_width=14,
        head_depth=1,
    )
    official = {
        "model_type": "nextstep",
        "num_attention_heads": host.num_heads,
        "num_key_value_heads": host.num_kv_heads,
        "rms_norm_eps": host.norm_eps,
        "rope_theta": host.rope_theta,
        "latent_patch_size": 4,
        "latent_channels": 3,
        "boi": made.id_of(prompts.TOKENS["begin_image"]),
        "eoi": made.id_of(prompts.TOKENS["end_image"]),
        "image_placeholder_id": fields["placeholder"],
        "pad_token_id_added": made.id_of(prompts.TOKENS["pad"]),
    }
    folder = tmp_path_factory.mktemp("converted")
    abstract = unstacked(abstract_params(*modules(fields)))
    out = converted.convert(folder, "nextstep", abstract, nextstep.RULES, official)
    with open(f"{out}/{prompts.FILE}", "w") as f:
        json.dump(file, f)
    vae = stored.abstract(VAE)
    return out, converted.convert(folder, "vae-f8", vae, nextstep_vae.RULES, VAE_OFFICIAL)


def test_a_run_starts_from_it_in_its_language(call, folders, tmp_path):
    source, run = folders[0], tmp_path / "run"
    changes = ("--config.train.steps=2", "--config.text.length=40", f"--config.init_from={source}")
    done = call("train", "--config=configs/drift_nextstep.py:tiny", f"--workdir={run}", *changes)
    assert (done.status, done.stderr) == (0, "")
    loaded = driftar_jax.load(run)
    text = loaded.model.images.text
    assert isinstance(loaded.reader.book.tokenizer, subwords.SubwordTokenizer)
    # No word is unknown to pieces of words.
    images = loaded.sample(["a zyxwv heart"], seed=0).images
    assert images.shape == (1, 12, 12, 3) and images.std() > 1
    assert text.unknown == text.pad and captions.nothing(text).shape == (1 + text.prompt,)


def test_what_does_not_fit_is_one_line(call, folders, tmp_path):
    def refused(*changes):
        run = tmp_path / "run"
        asked = (f"--config.init_from={folders[0]}", *changes)
        done = call("train", "--config=configs/drift_nextstep.py:tiny", f"--workdir={run}", *asked)
        assert done.status == 2 and done.stderr.count("\n") == 1 and not run.exists()
        return done.stderr

    assert "text.length: got 16, allowed at least" in refused()
    assert "of a host of the same sizes" in refused(
        "--config.text.length=40", "--config.host.mlp_width=24"
    )


def test_it_is_exported_with_the_same_arrays(call, folders, tmp_path):
    source, vae = folders
    done = call("export", f"--workdir={source}", f"--out={tmp_path / 'small'}", "--dtype=float32")
    assert (done.status, done.stderr) == (0, "")
    before, after = (load.load(folder, vae=vae) for folder in (source, tmp_path / "small"))
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)


def test_it_is_timed(call, folders):
    source, vae = folders
    asked = ("--nfe=2", "--batch_sizes=1", "--rounds=1", "--height=16", "--width=16")
    done = call("benchmark", f"--workdir={source}", f"--vae={vae}", *asked)
    assert (done.status, done.stderr) == (0, "") and "own, batch 1" in done.stdout
