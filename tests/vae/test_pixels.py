"""A host in latent space makes images through the autoencoder, and only through a fitting one."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from PIL import Image

import driftar_jax
from driftar_jax.conversion import mar, rules
from driftar_jax.data.pixels import to_unit_range
from driftar_jax.sampling import inpaint, load, plain
from driftar_jax.storage import checkpoints, jsons
from driftar_jax.vae import kl, stored

pytestmark = pytest.mark.timeout(300)

FIELDS = dict(
    num_tokens=9,
    token_dim=3,
    num_classes=5,
    width=12,
    encoder_depth=1,
    decoder_depth=2,
    num_heads=3,
    buffer_size=4,
    mlp_ratio=4.0,
    head_width=16,
    head_depth=1,
)


def _workdir(path, config, manifest, abstract):
    """A converted workdir with random arrays."""
    rng = np.random.default_rng(0)
    draw = lambda a: jnp.asarray(0.1 * rng.standard_normal(a.shape), jnp.float32)  # noqa: E731
    written = checkpoints.Checkpoints(path)
    written.save(0, manifest=manifest, ema=jax.tree.map(draw, abstract))
    written.wait()
    written.close()
    jsons.write_json(path / "config.json", config)
    return str(path)


def _vae(path, channels):
    vae = kl.KLVAE(32, (1, 2), 1, latent_channels=channels, attention_levels=(1,))
    return _workdir(path, stored.config_of(vae), {"task": "vae"}, stored.abstract(vae))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("latent")
    abstract = mar.abstract_params(*mar.modules(FIELDS))
    host = _workdir(root / "host", mar.config_of(FIELDS), rules.manifest_of(FIELDS), abstract)
    return host, _vae(root / "vae", 3), _vae(root / "other", 4)


@pytest.mark.slow  # test_prompted decodes
def test_images_are_decoded_tokens(folders):
    host, vae, _ = folders
    loaded = driftar_jax.load(host, vae=vae)
    made = loaded.sample([4, -1, 0], seed=3, ar_steps=3, nfe=2, guidance=1.0)
    assert made.images.shape == (3, 6, 6, 3) and made.images.dtype == np.uint8
    index = jnp.arange(3, dtype=jnp.int32)
    settings = loaded.settings(ar_steps=3, nfe=2, guidance=1.0)
    label = jnp.array([4, -1, 0], jnp.int32)
    grid, _ = plain.generate(loaded.model, settings, loaded.params, label, index, np.uint32(3))
    module, params = stored.load(vae)
    decode = jax.jit(functools.partial(module.apply, method="decode"))
    want = decode({"params": params}, grid / 0.2325)
    want = np.clip(np.round((np.asarray(want) + 1) / 2 * 255), 0, 255)
    assert np.abs(made.images - want).max() <= 1


def test_an_autoencoder_beside_a_checkpoint_is_found_by_its_name(folders, tmp_path):
    host, vae, _ = folders
    config = ml_collections.ConfigDict({"data": {"name": "latents:set"}})
    manifest = {"vae": "/elsewhere/vae", "image_shape": [6, 6, 3]}
    assert load.pixels_of(config, manifest, folder=tmp_path) is None
    found = load.pixels_of(config, manifest, folder=pathlib.Path(host).parent)
    assert found.vae.latent_channels == 3
    assert load.pixels_of(config, manifest) is None


def test_pictures_become_the_tokens_of_their_mode(folders):
    host, vae, _ = folders
    loaded = driftar_jax.load(host, vae=vae)
    assert inpaint.pixel_shape(loaded) == (6, 6, 3)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 3), np.uint8)
    module, params = stored.load(vae)
    encode = jax.jit(functools.partial(module.apply, method="encode"))
    moments = encode({"params": params}, to_unit_range(pictures))
    want = 0.2325 * np.asarray(moments)[..., :3]
    np.testing.assert_allclose(inpaint.grids(loaded, pictures), want, atol=1e-5)


@pytest.mark.slow  # as test_kl says of the tiles
def test_tiles_bound_the_memory(folders):
    """Twice the images need no more activations, once they fill several tiles."""
    vae, params = stored.load(folders[1])

    def peak(batch):
        grid = jax.ShapeDtypeStruct((batch, 8, 8, 3), jnp.float32)
        done = stored._decode.lower(vae, stored.TILE, params, grid).compile()
        return done.memory_analysis().temp_size_in_bytes

    assert peak(4 * stored.TILE) < 1.1 * peak(2 * stored.TILE)


@pytest.mark.parametrize(
    ("which", "message"),
    [
        (None, r"^vae: got None, allowed --vae=FOLDER written by convert --family=vae-kl16"),
        (2, r"^vae: got .*, allowed .* fits the host \(it has 4 latent channels, not 3\)"),
        (0, r"^vae: got .*, allowed .*\(task: got 'host', allowed 'vae'"),
        ("nowhere", r"^vae: got 'nowhere', allowed .*no readable config.json"),
    ],
)
def test_a_missing_or_foreign_autoencoder_is_refused(folders, which, message):
    vae = folders[which] if isinstance(which, int) else which
    with pytest.raises(ValueError, match=message):
        load.load(folders[0], vae=vae).sample([0])


@pytest.mark.slow  # two processes; the API is tested above
def test_the_command(folders, tmp_path, python):
    host, vae, _ = folders
    flags = (f"--workdir={host}", f"--out={tmp_path / 'made'}", "--num=2", "--labels=0,4")
    refused = python("-m", "driftar_jax.sample", *flags)
    assert refused.returncode == 2 and not (tmp_path / "made").exists()
    assert len(refused.stderr.splitlines()) == 1 and "vae: got None" in refused.stderr
    done = python("-m", "driftar_jax.sample", *flags, f"--vae={vae}", "--ar_steps=2", "--nfe=2")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "made" / "00001_class4.png") as picture:
        assert picture.size == (6, 6)
    counts = json.loads((tmp_path / "made" / "counts.json").read_text())
    assert counts["per_image"]["head_evaluations"] == 4
