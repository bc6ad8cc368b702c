"""An autoencoder trained here: its loss, and a run that everything else reads."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

from configs import autoencoder as configured
from configs import mae, nextstep_small
from driftar_jax import config, model
from driftar_jax.data import pipeline
from driftar_jax.storage import checkpoints, jsons
from driftar_jax.training import autoencoder, masked, runs
from driftar_jax.vae import encoding, kl, reconstruction, stored

pytestmark = pytest.mark.timeout(300)
IMAGES = model.ImageSpec((8, 8, 3), ("a", "b"), patch_size=1)


def _task(**more):
    settings = configured.get_config("tiny").autoencoder
    return autoencoder.AutoencoderTask(stored.trained(settings), IMAGES, 0.5, **more)


def test_the_loss_is_the_sum_of_its_terms_and_reaches_every_parameter():
    def maps(params, images):
        return {"a": images * params, "b": images[:, ::2]}

    plain, seen = _task(), _task(perceptual_weight=2.0, maps=maps, maps_params=jnp.float32(3.0))
    params = tiny.params(plain.init)
    batch = {"image": np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)}
    rest = batch, jax.random.key(1), 0, False
    loss = jax.jit(
        lambda p: (jax.value_and_grad(plain.loss, has_aux=True)(p, *rest), seen.loss(p, *rest))
    )
    ((value, m), grads), (with_maps, more) = loss(params)
    square = 4.0 / 10 ** (m["psnr"] / 10)
    np.testing.assert_allclose(value, m["absolute"] + square + 0.5 * m["kl"] + m["scale"], 1e-5)
    np.testing.assert_allclose(with_maps, value + 2.0 * more["perceptual"], 1e-5)
    assert more["perceptual"] > 0
    assert set(grads) == set(plain.trainable(False)) == set(stored.abstract(plain.vae))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))


def test_grey_pictures_are_named_before_anything_is_compiled():
    grey = model.ImageSpec((8, 8, 1), ("a", "b"), patch_size=1)
    with pytest.raises(ValueError, match="^data.name: got .*, allowed images of 3 channels"):
        autoencoder.build(configured.get_config("tiny"), grey, None)


def test_nats_of_a_token_against_drawn_ones():
    """The mean of `log q - log p` over draws of the posterior, in the units of tokens."""
    moments = tiny.normal(0, 2, 1, 1, 6)
    mean, std = (np.asarray(f(moments), np.float64) for f in (kl.mode, kl.std))
    mean, std = mean * kl.SCALE, std * kl.SCALE
    draws = mean + std * np.random.default_rng(1).standard_normal((200_000, *mean.shape))
    log_q = -0.5 * ((draws - mean) / std) ** 2 - np.log(std)
    want = (log_q + 0.5 * draws**2).mean()
    np.testing.assert_allclose(autoencoder.token_kl(moments), want, rtol=0.01)


def test_tokens_of_the_wanted_scale_cost_nothing():
    tokens = np.random.default_rng(0).standard_normal((4, 5, 5, 2)).astype(np.float32)
    tokens = (tokens - tokens.mean(axis=(0, 1, 2))) / tokens.std(axis=(0, 1, 2))
    assert autoencoder.scale_loss(tokens) < 1e-8
    # Channel 0 is 3 wide, channel 1 is off by 2.
    off = tokens * [3.0, 1.0] + [0.0, 2.0]
    np.testing.assert_allclose(autoencoder.scale_loss(off), (2.0**2 + 2.0**2) / 2, rtol=1e-3)


def test_maps_are_compared_by_direction():
    made = {"a": tiny.normal(0, 2, 3, 3, 4), "b": tiny.normal(1, 2, 1, 1, 2)}
    longer = {name: 5 * value for name, value in made.items()}
    assert autoencoder.perceptual_distance(made, longer) < 1e-6
    turned = {name: -value for name, value in made.items()}
    np.testing.assert_allclose(autoencoder.perceptual_distance(made, turned), 8.0, rtol=1e-5)


def test_folded_pixels_return_to_their_places():
    images = tiny.normal(0, 2, 4, 6, 3)
    np.testing.assert_array_equal(kl._unfolded(kl._folded(images, 2), 2), images)
    vae = kl.KLVAE(32, (1, 1), 1, latent_channels=3, attention_levels=(), fold=2)
    assert vae.factor == 4
    moments = jax.eval_shape(
        lambda p, x: vae.apply({"params": p}, x, method="encode"),
        stored.abstract(vae),
        jax.ShapeDtypeStruct((2, 8, 16, 3), jnp.float32),
    )
    assert moments.shape == (2, 2, 4, 6)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_shortcut_begins_as_a_cosine_transform(channels):
    side, pixels = 4, channels * 16
    there, back = kl.cosine_maps(side, channels, pixels)
    np.testing.assert_allclose(there @ back, np.eye(pixels), atol=1e-12)
    few, way_back = kl.cosine_maps(side, channels, 5)
    np.testing.assert_allclose(few, there[:, :5])
    np.testing.assert_allclose(way_back, np.linalg.pinv(few), atol=1e-12)
    # The first number is the mean of all pixels, whatever the scale.
    np.testing.assert_allclose(few[:, 0], few[0, 0])
    spare = kl.cosine_maps(2, channels, 4 * channels + 3)
    assert not spare[0][:, 4 * channels :].any() and not spare[1][4 * channels :].any()


def test_a_fresh_autoencoder_gives_smooth_pictures_back():
    vae = kl.KLVAE(32, (1, 1), 1, latent_channels=24, attention_levels=(), fold=2, shortcut=True)
    ramp = np.linspace(-1, 1, 8, dtype=np.float32)
    images = np.stack(np.broadcast_arrays(ramp, ramp[:, None], 0.5 * ramp), axis=-1)[None]
    params = vae.init(jax.random.key(0), images)["params"]
    made = vae.apply({"params": params}, images)
    assert np.abs(made - images).mean() < 0.02
    np.testing.assert_allclose(kl.std(vae.apply({"params": params}, images, method="encode")), 1)


def test_figures_of_a_reconstruction():
    images = np.full((2, 4, 4, 3), 100, np.uint8)
    made = images.copy()
    made[0] += 10
    made[1, 0, 0] = 255
    found = reconstruction.Reconstructed(images, made).figures()
    square = 155**2 / 16
    first, second = (10 * np.log10(255**2 / v) for v in (100.0, square))
    np.testing.assert_allclose(found["psnr"], (first + second) / 2)
    np.testing.assert_allclose(found["psnr_of_mean"], 10 * np.log10(255**2 / (50 + square / 2)))
    np.testing.assert_allclose(found["error"], (10 + 155 / 16) / 2)
    same = reconstruction.Reconstructed(images, images)
    assert np.isfinite(same.figures()["psnr"])
    pairs = reconstruction.Reconstructed(images, made).pairs(8, columns=3)
    np.testing.assert_array_equal(pairs[[0, 1, 3, 4]], [*images, *made])
    assert len(pairs) == 6 and (pairs[[2, 5]] == 255).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 48}, "autoencoder.channels: got 48, allowed a multiple of 32"),
        ({"multipliers": "1,,2"}, "autoencoder.multipliers: got '1,,2', allowed"),
        ({"fold": 3}, "data.image_size: got 16, allowed a multiple of 6"),
        ({"perceptual": 1.0}, "autoencoder.features_from: got '', allowed the workdir of"),
        ({"features_from": "x"}, "autoencoder.features_from: got 'x', allowed ''"),
        ({"features_from": "gs://b/x"}, "autoencoder.features_from: .*a folder of this machine"),
    ],
)
def test_a_wrong_config_is_named(changes, message):
    settings = configured.get_config("tiny")
    settings.autoencoder.update(changes)
    with pytest.raises(ValueError, match="^" + message):
        config.check(settings)


def _train(settings, workdir, data_dir):
    settings.data.data_dir = data_dir
    config.check(settings)
    with runs.open_run(settings, str(workdir)) as run:
        run.go_on(run.start())
    return str(workdir)


def _write_eyes(workdir, data_dir):
    """A masked autoencoder that nobody trained, on emoji of 16x16."""
    settings = mae.get_config("tiny")
    settings.data.update(name="emoji32", image_size=16, patch_size=1, data_dir=data_dir)
    images = model.ImageSpec((16, 16, 3), ("a", "b"), patch_size=1)
    written = checkpoints.Checkpoints(workdir)
    facts = {"image_shape": [16, 16, 3], "class_names": ["a", "b"], "patch_size": 1}
    written.save(0, manifest=facts, ema=tiny.params(masked.build(settings, images).init))
    written.close()
    jsons.write_json(workdir / "config.json", settings.to_dict())
    return str(workdir)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_dir):
    """An autoencoder of emoji at 16x16 that is compared in the maps of another network."""
    root = tmp_path_factory.mktemp("autoencoder")
    settings = configured.get_config("tiny")
    eyes = _write_eyes(root / "mae", data_dir)
    settings.autoencoder.update(perceptual=0.1, features_from=eyes)
    _train(settings, root / "vae", data_dir)
    return root, data_dir


def test_a_run_measures_held_out_pictures(trained):
    folder = trained[0] / "vae"
    lines = [json.loads(line) for line in (folder / "held_out.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6]
    assert all(line["split"] == "test" and 0 < line["psnr"] < 60 for line in lines)
    assert (folder / "samples" / "step_00000003.png").exists()
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(record["perceptual"] > 0 for record in metrics)


def test_a_run_begins_with_the_weights_of_another(trained, tmp_path):
    root, data_dir = trained
    settings = configured.get_config("tiny")
    settings.init_from, settings.data.data_dir = str(root / "vae"), data_dir
    with runs.open_run(settings, str(tmp_path / "more")) as run:
        params = run.start().params
    chex.assert_trees_all_equal(params, stored.load(root / "vae")[1])


def test_features_of_another_kind_are_refused(trained):
    root, data_dir = trained
    settings = configured.get_config("tiny")
    settings.data.data_dir = data_dir
    settings.autoencoder.update(perceptual=0.1, features_from=str(root / "vae"))
    with pytest.raises(ValueError, match="features_from: got .*task mae, not autoencoder"):
        runs.open_run(settings, str(root / "none"))
    assert not (root / "none").exists()


def test_its_latents_have_captions_and_become_pictures(trained):
    root, data_dir = trained
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / "pictures" / name).mkdir(parents=True)
        for i in range(10):
            picture = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
            picture.save(root / "pictures" / name / f"{i}.png")
            (root / "pictures" / name / f"{i}.txt").write_text(f"{name} number {i}")
    folder = f"folder:{root / 'pictures'}"
    sources = [pipeline.load_source(folder, split, image_size=16) for split in ("train", "test")]
    encoding.encode_set(sources, str(root / "vae"), str(root / "set"), per_shard=9, batch_size=8)
    read = pipeline.load_source(f"latents:{root / 'set'}", "test", image_size=4)
    assert read.captions == list(sources[1].captions) and len(read.captions) == 2
    np.testing.assert_array_equal(read.labels(), sources[1].labels())
    settings = nextstep_small.get_config("tiny")
    settings.data.update(name=f"latents:{root / 'set'}", image_size=4, patch_size=1)
    settings.sample.ar_steps, settings.train.batch_size = 16, 4
    config.check(settings)
    with runs.open_run(settings, str(root / "host")) as run:
        batch = next(run.batches)
        words = run.images.text.vocab_size
        assert run.loop.manifest["vae_fingerprint"] == read.vae_fingerprint
    assert batch["moments"].shape == (4, 2, 4, 4, 8)
    assert batch["text"].shape[0] == 4 and batch["text"].max() < words
    to_pixels = stored.to_pixels(root / "vae", 4, read.vae_fingerprint)
    made = to_pixels(to_pixels.grid(sources[1].gather(np.arange(2))[0]))
    assert made.shape == (2, 16, 16, 3) and made.dtype == np.uint8
    (root / "set" / "captions.json").write_text('{"test": ["one"]}')
    with pytest.raises(ValueError, match="allowed a caption for each of 2 images of test"):
        pipeline.load_source(f"latents:{root / 'set'}", "test", image_size=4)


def test_half_as_many_digits_are_read_as_float32(trained, tmp_path):
    """As `export` writes them."""
    root, _ = trained
    params = stored.load(root / "vae")[1]
    written = checkpoints.Checkpoints(tmp_path)
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    written.save(0, manifest={"task": "autoencoder"}, ema=half)
    written.close()
    config_of_run = checkpoints.read_config(root / "vae")
    jsons.write_json(tmp_path / "config.json", config_of_run)
    read = stored.load(tmp_path)[1]
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(read))
    chex.assert_trees_all_close(read, params, rtol=0.01, atol=1e-6)


def test_a_rounded_export_is_known_by_the_fingerprint_of_its_run(trained, tmp_path):
    root, _ = trained
    params = stored.load(root / "vae")[1]
    run = stored.fingerprint(params)
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    written = checkpoints.Checkpoints(tmp_path)
    written.save(0, manifest={"task": "autoencoder", stored.FINGERPRINT: run}, ema=half)
    written.close()
    jsons.write_json(tmp_path / "config.json", checkpoints.read_config(root / "vae"))
    assert stored.fingerprint(stored.load(tmp_path)[1]) != run
    assert stored.to_pixels(tmp_path, 4, run).vae.latent_channels == 4
    with pytest.raises(ValueError, match="was encoded with another one"):
        stored.to_pixels(tmp_path, 4, "0123456789abcdef")


def test_it_is_none_of_another_kind(trained):
    root, _ = trained
    shapes = stored.abstract(stored.module(checkpoints.read_config(root / "vae")))
    assert {"encoder", "decoder", "quant_conv", "post_quant_conv"} < set(shapes)
    with pytest.raises(ValueError, match="task: got 'autoencoder'"):
        stored.load(root / "vae", kind="vae-f8")
