"""A converted NextStep-1: timed, exported, compared, and what a Drift-AR run starts from."""

import dataclasses
import json

import chex
import converted
import numpy as np
import pytest

import driftar_jax
from configs import drift_nextstep
from driftar_jax.conversion import nextstep, nextstep_vae
from driftar_jax.data import captions, pipeline, prompts
from driftar_jax.hosts.nextstep_stored import abstract_params, modules, unstacked
from driftar_jax.sampling import conditions, load
from driftar_jax.types import TextSpec
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
    file = prompts.subwords_of(texts, SPECIAL)
    made = prompts.SubwordTokenizer(file)
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


@pytest.mark.slow
def test_a_run_starts_from_it_in_its_language(call, folders, tmp_path):
    source, run = folders[0], tmp_path / "run"
    changes = ("--config.train.steps=2", "--config.text.length=40", f"--config.init_from={source}")
    done = call("train", "--config=configs/drift_nextstep.py:tiny", f"--workdir={run}", *changes)
    assert (done.status, done.stderr) == (0, "")
    loaded = driftar_jax.load(run)
    text = loaded.model.images.text
    assert isinstance(loaded.reader.book.tokenizer, prompts.SubwordTokenizer)
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
    chex.assert_trees_all_equal(before.params, after.params)


@pytest.mark.slow
def test_pictures_of_both_types(call, folders, tmp_path):
    source, vae = folders
    words = (f"--workdir={source}", f"--vae={vae}", "--prompt=red heart", "--num=16")
    words += ("--height=64", "--width=64", "--guidance=3")
    mean, most, largest, spread = converted.types_apart(call, tmp_path, *words)
    print("nextstep", mean, most, largest, spread)  # with `-s`: the row of docs/api.md
    # Token after token is drawn given those before: some pictures part, most stay.
    assert mean < 6 and most < 80 and spread > 50


def test_it_is_timed(call, folders):
    source, vae = folders
    asked = ("--nfe=2", "--batch_sizes=1", "--rounds=1", "--height=16", "--width=16")
    done = call("benchmark", f"--workdir={source}", f"--vae={vae}", *asked, terminal=True)
    assert done.status == 0 and "0/1" in done.stderr and "own, batch 1" in done.stdout


@pytest.fixture(scope="module")
def compared(call, folders, tmp_path_factory):
    """Drift-AR from the converted host, and a classifier, both of images of 16x16."""
    root = tmp_path_factory.mktemp("compared")
    made = {name: str(root / name) for name in ("drift", "judge")}
    short = ("--config.data.image_size=16", "--config.train.steps=2")
    of_text = ("--config.text.length=40", "--config.sample.ar_steps=16")
    of_text += (f"--config.init_from={folders[0]}",)
    images = ("--config.data.name=emoji32", "--config.data.patch_size=4")
    for config, name, more in (
        ("drift_nextstep", "drift", of_text),
        ("classifier", "judge", images),
    ):
        asked = (f"--config=configs/{config}.py:tiny", f"--workdir={made[name]}", *short, *more)
        done = call("train", *asked)
        assert (done.status, done.stderr) == (0, "")
    return made


@pytest.mark.slow  # two trainings and twelve programs
@pytest.mark.timeout(600)
def test_it_is_the_baseline_of_a_run_that_started_from_it(call, folders, compared, tmp_path):
    source, vae = folders
    runs = (
        f"--workdir={compared['drift']}",
        f"--baseline={source}",
        f"--judge={compared['judge']}",
    )
    few = ("--num=12", "--seeds=1", "--batch_sizes=4", "--metrics=kid")
    done = call("evaluate", *runs, f"--vae={vae}", f"--out={tmp_path / 'report'}", *few)
    assert (done.status, done.stderr) == (0, "")
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    rows = {(row["method"], row["nfe_per_step"]): row for row in report["rows"]}
    # The released sampling: 28 evaluations and guidance 7.5.
    assert {("own", 28), ("own", 10), ("drift", 1)} <= rows.keys()
    for (method, _), row in rows.items():
        # Tokens of 4x4 pixels in the run, of 8x8 in the baseline.
        assert row["ar_steps"] == (4 if method == "own" else 16)
        assert row["frechet"] > 0 and row["images_per_s"] > 0
    assert {"own head alone", "Drift-AR"} == report["premise"].keys()
    assert (tmp_path / "report" / "samples_own.png").exists()


def test_a_baseline_that_does_not_fit_is_one_line(call, folders, workdirs, tmp_path):
    def refused(*words, drift=workdirs.drift):
        runs = (f"--workdir={drift}", f"--judge={workdirs.judge}", f"--out={tmp_path / 'out'}")
        done = call("evaluate", *runs, *words)
        assert done.status == 2 and done.stderr.count("\n") == 1
        assert not (tmp_path / "out").exists()
        return done.stderr

    source, vae = folders
    few = ("--num=12",)
    assert "the run of --workdir has no captions" in refused(f"--baseline={source}", *few)
    own = refused(f"--baseline={workdirs.own}", f"--vae={vae}", *few)
    assert f"vae: got '{vae}', allowed none" in own


def test_classes_are_asked_by_the_captions_of_a_run(folders):
    """The same labels and seed ask for the same texts, whoever reads them."""
    source, vae = folders
    loaded = load.load(source, vae=vae).sized(conditions.Request(size=(16, 16)))
    spec = TextSpec(40, 0, 0, 0, 0, 0, ())
    book = captions.Book(None, spec, (4, 4), (("red heart", "a heart"), ("monkey face",)))
    reader = dataclasses.replace(loaded.reader, book=book)
    labels = np.array([0, 1, 0, 0])
    texts = book.drawn(labels, 3)
    assert len(set(texts)) > 1 and reader.texts(labels, 3) == texts
    settings = loaded.checked(guidance=2.0)
    asked = (reader.conditions(loaded.model, settings, a, 3).rows for a in (labels, texts))
    np.testing.assert_array_equal(*asked)
    real = reader.of_real(loaded.model, labels, texts)
    alone = reader.conditions(loaded.model, loaded.checked(guidance=1.0), texts, 3)
    np.testing.assert_array_equal(real.rows, alone.rows)
