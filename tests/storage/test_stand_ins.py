"""Files that were not fetched: every reader says so, and none takes them for damage."""

import pytest

from driftar_jax.data import images, picture_sets, pipeline
from driftar_jax.storage import jsons, reasons

TEXTS = {
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 8\n",
    "a web page": b"\xef\xbb\xbf\n<!DOCTYPE html><html><title>404</title></html>",
}
PLACES = {
    "a/0.png": "folder:",
    "a-0.tar": "webdataset:",
    "a-0.parquet": "parquet:",
    "a/0.npz": "latents:",
}


@pytest.mark.parametrize("said", TEXTS)
@pytest.mark.parametrize("place", PLACES)
def test_data_that_was_not_fetched(tmp_path, place, said):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_bytes(TEXTS[said])
    with pytest.raises(ValueError, match=f"^data.name: got .*{said}, not the file") as caught:
        pipeline.load_source(f"{PLACES[place]}{tmp_path}", "train")
    assert place in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("said", TEXTS)
def test_other_files_that_were_not_fetched(tmp_path, said):
    for name in ("a.npz", "a.json"):
        (tmp_path / name).write_bytes(TEXTS[said])
    with pytest.raises(ValueError, match=f"^images: got .*{said}"):
        picture_sets.open_pictures("images", str(tmp_path / "a.npz"))
    with pytest.raises(ValueError, match=f"^x: got .*{said}"):
        jsons.read_json("x", tmp_path / "a.json", "facts")
    with pytest.raises(images.BadImage, match=said):
        images.decode(TEXTS[said], channels=3, size=None, center_crop=True)
    assert reasons.of_file(tmp_path / "nothing") is None
    assert reasons.of_head(b"\x89PNG") is None
