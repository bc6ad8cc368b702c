"""torch-fidelity and clean-fid themselves read what a layout leaves; without them, left out."""

import numpy as np
import pytest

from driftar_jax.reports import layouts

pytestmark = pytest.mark.slow
FACTS = {"checkpoint": "w", "settings": {}, "seed": 0}
COUNT, SIDE = 12, 16


def _fill(name, out, channels):
    """A finished folder of COUNT pictures, and the pictures as RGB."""
    shape = (COUNT, SIDE, SIDE, channels)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    layout = layouts.Layout(name, out, count=COUNT, labels=["a"] * COUNT)
    layout.begin(FACTS)
    for number in layout.missing():
        layout.write(number, images[number])
    layout.finish()
    return np.repeat(images, 3 // channels, axis=-1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["torch_fidelity", "folder", "adm"])
def test_torch_fidelity_reads_the_pictures_and_no_others(tmp_path, name, channels):
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is not in this environment")
    from torch_fidelity import utils

    images = _fill(name, tmp_path / "out", channels)
    # As its command line does, which looks for pictures in the folder and not below it.
    asked = {"samples_find_deep": False, "samples_find_ext": "png,jpg,jpeg", "verbose": False}
    asked |= {"samples_ext_lossy": "jpg,jpeg", "samples_shuffle": False, "rng_seed": 0}
    read = utils.prepare_input_from_id(1, input1=str(tmp_path / "out" / "images"), **asked)
    assert len(read) == COUNT
    found = np.stack([np.asarray(read[i]).transpose(1, 2, 0) for i in range(COUNT)])
    np.testing.assert_array_equal(found, images)


@pytest.mark.parametrize("name", ["torch_fidelity", "folder"])
def test_clean_fid_reads_the_pictures_and_no_others(tmp_path, name):
    torch = pytest.importorskip("torch", reason="torch is not in this environment")
    fid = pytest.importorskip("cleanfid.fid", reason="clean-fid is not in this environment")
    images = _fill(name, tmp_path / "out", 3)
    seen = []

    def network(batch):  # in the place of Inception: what arrives, and its mean colour
        seen.append(batch.cpu().numpy())
        return batch.float().mean(dim=(2, 3))

    features = fid.get_folder_features(
        str(tmp_path / "out" / "images"),
        model=network,
        num_workers=0,
        device=torch.device("cpu"),
        custom_fn_resize=lambda picture: picture,
        verbose=False,
    )
    np.testing.assert_array_equal(np.concatenate(seen).transpose(0, 2, 3, 1), images)
    assert features.shape == (COUNT, 3)
    half = fid.fid_from_feats(features, features[::-1])
    assert abs(half) < 1e-3
