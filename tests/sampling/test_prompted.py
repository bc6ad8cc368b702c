"""From prompts to pictures with a converted checkpoint of the smallest size."""

import importlib
import json
import sys

import converted
import jax
import numpy as np
import pytest
from absl import flags
from PIL import Image
from words import MARKS, VOCABULARY, Words

from driftar_jax.conversion import nextstep, nextstep_vae, rules, shards
from driftar_jax.data import prompts
from driftar_jax.hosts.nextstep_stored import abstract_params, modules, unstacked
from driftar_jax.layers import causal
from driftar_jax.sampling import load
from driftar_jax.vae import stored
from driftar_jax.vae.f8 import F8VAE

FIELDS = dict(
    vocab_size=VOCABULARY,
    placeholder=MARKS["placeholder"],
    token_dim=12,
    width=16,
    depth=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    mlp_width=20,
    norm_eps=1e-5,
    rope_theta=1e4,
    attention_bias=True,
    head_width=14,
    head_depth=1,
)
OFFICIAL = {
    "model_type": "nextstep",
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "latent_patch_size": 2,
    "latent_channels": 3,
    "boi": MARKS["begin_image"],
    "eoi": MARKS["end_image"],
    "image_placeholder_id": MARKS["placeholder"],
    "pad_token_id_added": MARKS["pad"],
    "max_position_embeddings": 64,
}
# Factor 2 and patches of 2: a token stands for 4x4 pixels.
VAE = F8VAE(
    True, 2, 1.0, 0.0, True, channels=32, multipliers=(1, 2), num_res_blocks=1, latent_channels=3
)
VAE_OFFICIAL = {
    "encoder_norm": True,
    "psz": 2,
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
    "deterministic": True,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompted")
    host = unstacked(abstract_params(*modules(FIELDS)))
    return (
        converted.convert(folder, "nextstep", host, nextstep.RULES, OFFICIAL),
        converted.convert(folder, "vae-f8", stored.abstract(VAE), nextstep_vae.RULES, VAE_OFFICIAL),
    )


@pytest.fixture(scope="module")
def loaded(folders):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompts, "load_tokenizer", lambda folder, marks: Words())
        return load.load(folders[0], vae=folders[1])


def test_parameters_are_those_of_the_file(loaded, folders):
    apart = unstacked(jax.tree.map(np.asarray, loaded.params))
    names, _ = rules.to_official(rules.flatten(apart), nextstep.RULES)
    written = shards.Shards(folders[0].replace("nextstep", "official_nextstep"))
    assert names.keys() == written.keys()
    for name, array in names.items():
        np.testing.assert_array_equal(array, np.asarray(written[name]), err_msg=name)


SMALL = dict(size=(8, 12), nfe=3, guidance=2.0)


@pytest.mark.slow
def test_text_to_image(loaded):
    """The same images whatever the batch; prompt, seed and negative prompt are read."""
    captions = ["a fox", "red", "fox"]
    made = loaded.sample(captions, seed=3, batch_size=2, **SMALL)
    assert made.images.shape == (3, 8, 12, 3) and made.images.dtype == np.uint8
    counts = made.counts
    assert (counts.backbone_calls, counts.head_evaluations, counts.backbone_rows) == (6, 18, 12)
    alone = loaded.sample(captions, seed=3, batch_size=1, **SMALL)
    assert np.abs(alone.images.astype(int) - made.images).max() <= 1

    def differs(**changes):
        other = loaded.sample(captions[:1], **{"seed": 3, **SMALL, **changes})
        return np.abs(other.images.astype(int) - made.images[:1]).max() > 3

    assert differs(seed=4) and differs(negative="zzz") and differs(normalise=True)


def test_an_edit_reads_its_source(loaded):
    """Two terms of guidance, three rows per image."""
    rng = np.random.default_rng(0)
    sources = [rng.integers(0, 256, (4, 8, 3), np.uint8) for _ in range(2)]
    asked = {**SMALL, "guidance_image": 1.5, "batch_size": 2}
    captions = ["<image> red", "a <image>"]
    made = loaded.sample(captions, sources=sources, **asked)
    assert made.images.shape == (2, 8, 12, 3)
    assert made.counts.backbone_rows == 3 * made.counts.backbone_calls
    other = loaded.sample(captions, sources=[sources[1], sources[1]], **asked)
    np.testing.assert_array_equal(other.images[1], made.images[1])
    assert np.abs(other.images[0].astype(int) - made.images[0]).max() > 3


@pytest.mark.slow  # test_causal has the layers alone
def test_large_layers_lie_apart_once_loaded_and_draw_the_same(loaded, folders, monkeypatch):
    """Large by the test's own limit. Both the calls of the loop and the prompt's read them."""
    monkeypatch.setattr(causal, "_APART_BYTES", (0, 2**30))
    monkeypatch.setattr(prompts, "load_tokenizer", lambda folder, marks: Words())
    loose = load.load(folders[0], vae=folders[1])
    assert "layers" in loaded.params["host"]["stack"]
    assert {"apart_0", "apart_2"} <= loose.params["host"]["stack"].keys() >= {"norm"}
    whole, apart = (
        model.sample(["a cat"], seed=3, batch_size=1, **SMALL).images for model in (loaded, loose)
    )
    assert np.abs(whole.astype(int) - apart.astype(int)).max() <= 1 and whole.std() > 0


@pytest.mark.slow  # test_causal_tasks and test_lookahead hold both roads
def test_looking_ahead_makes_the_same_pictures(loaded):
    """With prompts, a source image and three rows per image; and with the guidance of papers."""
    source = np.random.default_rng(0).integers(0, 256, (4, 8, 3), np.uint8)
    for captions, sources, asked in (
        (["<image> red"], [source], {"guidance_image": 1.5}),
        (["red", "fox is"], [], {"guidance": 7.5, "normalise": True}),
    ):
        asked = {**SMALL, "batch_size": 2, **asked}
        plain = loaded.sample(captions, sources=sources, **asked)
        made = loaded.sample(captions, sources=sources, **asked, lookahead=4, delta=0.0)
        assert np.abs(made.images.astype(int) - plain.images).max() <= 1
        assert made.counts.backbone_calls <= plain.counts.backbone_calls
        assert made.speculation["calls"][2] <= 6


BAD = {
    "guidance: got 0.5, allowed 1 (none) or more": dict(guidance=0.5),
    "guidance_image: got 2.0, allowed 1 while": dict(guidance=1.0, guidance_image=2.0),
    "guidance_image: got 'above 1', allowed 1 without": dict(guidance_image=2.0),
    "guidance_schedule: got 'cosine'": dict(guidance_schedule="cosine"),
    "nfe: got 0": dict(nfe=0),
    "shift: got -1": dict(shift=-1),
    "height: got 10, allowed a multiple of 4": dict(size=(10, 12)),
    "width: got 0, allowed a multiple of 4": dict(size=(8, 0)),
    "height: got 400, allowed an image of fewer than 64": dict(size=(400, 400)),
    "prompt: got None": dict(captions=[]),
    "prompt: got 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' of": dict(captions=["x" * 60]),
    "image: got '2 images', allowed one for each of 1": dict(sources=[(4, 4), (4, 4)]),
    "image: got 'a side of 6'": dict(sources=[(6, 4)]),
    "image: got sizes 4x4, 4x8, allowed one size": dict(
        captions=["<image>", "<image>"], sources=[(4, 4), (4, 8)]
    ),
}


@pytest.mark.parametrize("words", BAD)
def test_bad_requests_are_one_line(loaded, words):
    asked = {**SMALL, "captions": ["fox"], "sources": (), **BAD[words]}
    captions = asked.pop("captions")
    sources = [np.zeros((*size, 3), np.uint8) for size in asked.pop("sources")]
    with pytest.raises(ValueError) as error:
        loaded.sample(captions, sources=sources, **asked)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_source_files(tmp_path, program):
    Image.fromarray(np.full((8, 4, 3), 7, np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "c.png").write_text("no picture")
    picture = program._picture(str(tmp_path / "a.png"))
    assert picture.shape == (8, 4, 3) and (picture == 7).all()
    for name in "cd":
        with pytest.raises(ValueError, match="^image: got .*picture") as error:
            program._picture(str(tmp_path / f"{name}.png"))
        assert "\n" not in str(error.value)


def test_what_is_missing_is_named(folders, tmp_path):
    with pytest.raises(ValueError, match="^vae: got None, allowed --vae=FOLDER"):
        load.load(folders[0])
    with pytest.raises(ValueError, match="^tokenizer.json: got None"):
        load.load(folders[0], vae=folders[1])
    with pytest.raises(ValueError, match="^task: got 'vae', allowed host"):
        load.load(folders[1], vae=folders[1])
    with pytest.raises(ValueError, match="^workdir: got"):
        load.load(tmp_path)


@pytest.fixture
def program():
    """`sample` as a module; its flags are forgotten, for other tests run it as a program."""
    foreign = set(flags.FLAGS)
    yield importlib.import_module("driftar_jax.sample")
    flags.FLAGS.unparse_flags()
    for name in set(flags.FLAGS) - foreign:
        # Flags that a module defines when it is imported stay: it is imported once.
        module = flags.FLAGS.find_module_defining_flag(name) or ""
        if module == "driftar_jax.sample" or module.endswith("_flags"):
            delattr(flags.FLAGS, name)
    del sys.modules["driftar_jax.sample"]


@pytest.mark.slow  # test_prompted_runs goes through the command
def test_the_program(folders, tmp_path, monkeypatch, capsys, program):
    """As a user types it, but for the tokenizer's library."""
    monkeypatch.setattr(prompts, "load_tokenizer", lambda folder, marks: Words())

    def run(*more):
        flags.FLAGS.unparse_flags()
        for name in flags.FLAGS:
            flags.FLAGS[name].unparse()
        asked = (f"--workdir={folders[0]}", f"--vae={folders[1]}", f"--out={tmp_path / 'o'}")
        flags.FLAGS(["sample", *asked, *more])
        program.main([])

    size = ("--height=8", "--width=8", "--nfe=2", "--prompt=fox")
    run(*size, "--num=3", "--batch_size=2")
    assert len(list((tmp_path / "o").glob("0*.png"))) == 3
    facts = json.loads((tmp_path / "o" / "counts.json").read_text())
    assert facts["per_image"]["head_evaluations"] == 8 and facts["prompts"] == ["fox"] * 3
    for more, line in (
        (("--prompt=fox", "--labels=3"), "labels: got '3', allowed none"),
        ((), "prompt: got None, allowed at least one --prompt"),
        (("--prompt=fox", "--mesh_tensor=0"), "mesh_tensor: got 0, allowed a whole number"),
        (("--prompt=fox", "--mesh_tensor=64"), "mesh: got data=-1 fsdp=1 tensor=64"),
        (("--prompt=fox", "--out=elsewhere_9", "--guidance=0.2"), "guidance: got 0.2, allowed 1"),
    ):
        with pytest.raises(SystemExit) as stop:
            run(f"--out={tmp_path / 'p'}", *more)
        assert stop.value.code == 2
        assert capsys.readouterr().err.startswith(f"driftar_jax: {line}")
    assert not (tmp_path / "p").exists()
