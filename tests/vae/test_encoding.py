"""Images to latents on disk, and training from them."""

import functools
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

import driftar_jax
from configs import mar_base
from driftar_jax import config
from driftar_jax.data import latents, pipeline
from driftar_jax.data.pixels import to_unit_range
from driftar_jax.storage import checkpoints, jsons
from driftar_jax.training import runs
from driftar_jax.training.tokens import tokenise
from driftar_jax.vae import encoding, kl, stored

pytestmark = pytest.mark.timeout(300)

VAE = kl.KLVAE(32, (1, 2), 1, latent_channels=3, attention_levels=(1,))


def _write_vae(path, seed):
    shapes = stored.abstract(VAE)
    rng = np.random.default_rng(seed)
    draw = lambda a: jnp.asarray(0.1 * rng.standard_normal(a.shape), jnp.float32)  # noqa: E731
    written = checkpoints.Checkpoints(path)
    written.save(0, manifest={"task": "vae"}, ema=jax.tree.map(draw, shapes))
    written.wait()
    written.close()
    jsons.write_json(path / "config.json", stored.config_of(VAE))
    return str(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An image set, an autoencoder, and the set encoded, stopped once on the way."""
    root = tmp_path_factory.mktemp("encode")
    rng = np.random.default_rng(0)
    for name, count in (("cat", 6), ("dog", 4)):
        (root / "images" / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(root / "images" / name / f"{i}.png")
    source = pipeline.load_source(f"folder:{root / 'images'}", "train", image_size=8)
    vae, out, told = _write_vae(root / "vae", 1), str(root / "set"), []

    def stop(line):
        told.append(line)
        raise KeyboardInterrupt

    call = dict(per_shard=3, batch_size=2)
    with pytest.raises(KeyboardInterrupt):
        encoding.encode_set([source], vae, out, tell=stop, **call)
    with pytest.raises(ValueError, match="^data.name: got .*, allowed a set that encode finished"):
        latents.open_latents(f"latents:{out}", "train", image_size=4)
    encoding.encode_set([source], vae, out, tell=told.append, **call)
    return source, vae, root / "set", told


def test_a_bar_counts_the_images_and_jumps_over_shards_that_are_there(
    made, tmp_path, capsys, monkeypatch
):
    source, vae, folder, _ = made
    shutil.copytree(folder, tmp_path / "set")
    (tmp_path / "set" / latents.shard_name("train", 2, -(-len(source) // 3))).unlink()
    for terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal, raising=False)
        lines = []
        encoding.encode_set(
            [source], vae, str(tmp_path / "set"), per_shard=3, batch_size=2, tell=lines.append
        )
        assert len(lines) == 1
        assert (f"/{len(source)} [" in capsys.readouterr().err) == terminal
        (tmp_path / "set" / latents.shard_name("train", 2, -(-len(source) // 3))).unlink()


def test_shards_are_written_once_and_whole(made):
    source, _, folder, told = made
    shards = [latents.shard_name("train", i, -(-len(source) // 3)) for i in range(3)]
    assert [line.partition(":")[0] for line in told] == shards
    files = {"latents.json", "dataset_info.json", "features.json", "label.labels.txt"}
    assert {p.name for p in folder.iterdir()} == files | set(shards)


def test_moments_are_those_of_the_image_and_of_its_mirror_image(made):
    source, vae, folder, _ = made
    read = latents.open_latents(f"latents:{folder}", "train", image_size=4)
    assert len(read) == len(source) and read.image_shape == (4, 4, 3)
    assert read.class_names == ("cat", "dog") and read.vae == vae
    module, params = stored.load(vae)
    encode = jax.jit(functools.partial(module.apply, method="encode"))
    for i in (0, len(source) - 1):
        item = source[i]
        pair = np.stack([item["image"], item["image"][:, ::-1]])
        want = encode({"params": params}, to_unit_range(pair))
        np.testing.assert_allclose(read[i]["moments"], want, rtol=1e-4, atol=1e-4)
        assert read[i]["label"] == item["label"]


def test_tfds_reads_the_set(made):
    import tensorflow_datasets as tfds

    records = tfds.builder_from_directory(str(made[2])).as_data_source("train")
    assert records[1]["moments"].shape == (4, 4, 6) and len(records) == len(made[0])


def test_another_set_is_not_mixed_in(made, tmp_path):
    source, vae, folder, _ = made
    other = _write_vae(tmp_path / "vae", 2)
    with pytest.raises(ValueError, match="^out: got .*, allowed a new folder .*another vae"):
        encoding.encode_set([source], other, str(folder), per_shard=3, batch_size=2)
    with pytest.raises(ValueError, match="^out: got .*another per_shard"):
        encoding.encode_set([source], vae, str(folder), per_shard=4, batch_size=2)
    with pytest.raises(ValueError, match="^out: got .*, allowed a new or empty folder"):
        encoding.encode_set([source], vae, str(tmp_path), per_shard=3, batch_size=2)


def test_a_full_disk_leaves_whole_shards_alone(made, tmp_path, monkeypatch):
    source, vae, _, _ = made

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(latents.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        encoding.encode_set([source], vae, str(tmp_path / "s"), per_shard=3, batch_size=2)
    assert not list(tmp_path.rglob("*array_record*"))


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("latents", 4, "^data.name: got 'latents', allowed latents:PATH"),
        ("latents:nowhere", 4, "^data.name: got 'latents:nowhere', allowed latents:PATH with"),
        ("{}", 8, "^data.image_size: got 8, allowed 4"),
    ],
)
def test_a_wrong_set_is_named(made, name, size, message):
    with pytest.raises(ValueError, match=message):
        pipeline.load_source(name.format(f"latents:{made[2]}"), "train", image_size=size)


def test_the_official_cache_is_read(tmp_path):
    rng = np.random.default_rng(0)
    pair = rng.standard_normal((2, 6, 4, 5)).astype(np.float32)
    for name in ("n01", "n02"):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "a.JPEG.npz", moments=pair[0], moments_flip=pair[1])
    read = latents.open_latents(f"latents:{tmp_path}", "train", image_size=None)
    assert len(read) == 2 and read.image_shape == (4, 5, 3) and read[1]["label"] == 1
    np.testing.assert_array_equal(read[0]["moments"], pair.transpose(0, 2, 3, 1))
    np.savez(tmp_path / "n01" / "b.npz", other=pair)
    with pytest.raises(ValueError, match="b.npz', allowed files with moments"):
        latents.open_latents(f"latents:{tmp_path}", "train", image_size=None)[1]


@pytest.mark.parametrize("moments", [np.zeros((7, 4, 4)), np.full((8, 4, 4), np.nan), [[[1e300]]]])
def test_a_cache_of_no_latents_is_one_line(tmp_path, moments):
    (tmp_path / "n01").mkdir()
    np.savez(tmp_path / "n01" / "a.npz", moments=moments, moments_flip=moments)
    with pytest.raises(ValueError, match="a.npz', allowed files with moments and moments_flip"):
        latents.open_latents(f"latents:{tmp_path}", "train", image_size=None)
    with pytest.raises(ValueError, match="^data.split: got 'test', allowed 'train'"):
        latents.open_latents(f"latents:{tmp_path}", "test", image_size=None)


def test_every_visit_draws_anew():
    moments = jnp.stack([jnp.zeros((400, 2, 2, 4)), jnp.full((400, 2, 2, 4), 9.0)], axis=1)
    moments = tiny.changed(moments, np.s_[..., 2:], to=-60.0)  # clamped to -30
    draw = lambda key, mirror: tokenise(  # noqa: E731
        {"moments": moments}, jax.random.key(key), patch_size=1, mirror=mirror
    )
    once, again = draw(0, False), draw(1, False)
    assert once.shape == (400, 4, 2) and not np.array_equal(once, again)
    assert jnp.std(once) == pytest.approx(0.2325 * np.exp(-15.0), rel=0.1)
    from_mirror = draw(0, True).mean(axis=(1, 2)) > 0.2325
    assert 0.4 < from_mirror.mean() < 0.6


@pytest.mark.slow  # test_autoencoder opens such a run, test_pixels samples
def test_training_and_sampling(made, tmp_path):
    _, vae, folder, _ = made
    settings = mar_base.get_config("tiny")
    settings.data.update(name=f"latents:{folder}", image_size=4, patch_size=1, flip=True)
    settings.train.update(steps=2, batch_size=4, log_every=1)
    settings.sample.update(guidance=1.0, nfe=2)
    config.check(settings)
    run = runs.open_run(settings, str(tmp_path / "run"))
    run.go_on(run.start())
    assert (tmp_path / "run" / "samples" / "step_00000002.png").exists()
    loaded = driftar_jax.load(tmp_path / "run")
    assert loaded.sample([1, 0]).images.shape == (2, 8, 8, 3)
    other = _write_vae(tmp_path / "vae", 2)
    with pytest.raises(ValueError, match="^vae: got .*encoded with another one"):
        driftar_jax.load(tmp_path / "run", vae=other)
