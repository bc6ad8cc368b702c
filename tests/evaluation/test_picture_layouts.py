"""Layouts of pictures, by what each official reader checks, written once more here."""

import json
import os
import re
import zipfile

import numpy as np
import pytest
from PIL import Image

from driftar_jax.data import picture_sets, prompt_files
from driftar_jax.reports import layouts

SIDE = 8
FACTS = {"checkpoint": "w", "settings": {"nfe": 4}, "seed": 0}


def _image(number, channels=3):
    return np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, channels), np.uint8)


def _fill(layout, channels=3, numbers=None):
    layout.begin(FACTS)
    for number in layout.missing() if numbers is None else numbers:
        layout.write(number, _image(number, channels))
    layout.finish()


@pytest.fixture
def geneval_file(tmp_path):
    lines = [
        {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": p}
        for p in ("a photo of a bench", "a photo of a cow", "a photo of two dogs")
    ]
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path, lines


@pytest.fixture
def dpg_folder(tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    for name in ("partiprompts102", "stanford12", "whoops3"):
        (folder / f"{name}.txt").write_text(f"a long prompt\nof {name}\n")
    return folder


@pytest.fixture
def mjhq_file(tmp_path):
    table = {
        f"{i:03x}aa": {"category": ["animals", "art"][i % 2], "prompt": f"p {i}"} for i in range(6)
    }
    path = tmp_path / "meta_data.json"
    path.write_text(json.dumps(table))
    return path, table


def _torch_fidelity(folder):
    """As `ImagesPathDataset` and its loader: flat, three endings, RGB, one size per batch."""
    files = [os.path.join(folder, f) for f in os.listdir(folder)]
    kept = [f for f in files if os.path.splitext(f)[1].lower()[1:] in ("png", "jpg", "jpeg")]
    kept.sort(key=os.path.realpath)
    assert len(kept) == len(files)
    with_rgb = []
    for file in kept:
        with Image.open(file) as picture:
            assert picture.mode == "RGB"
            with_rgb.append(np.asarray(picture.convert("RGB")))
    return np.stack(with_rgb), [os.path.basename(f) for f in kept]


def _clean_fid(folder):
    """As clean-fid: everything below, by ending."""
    endings = {"bmp", "jpg", "jpeg", "pgm", "png", "ppm", "tif", "tiff", "webp", "npy"}
    found = []
    for place, _, files in os.walk(folder):
        found += [os.path.join(place, f) for f in files if f.rpartition(".")[2] in endings]
    return sorted(found)


@pytest.mark.parametrize("channels", [1, 3])
def test_torch_fidelity_takes_the_folder(tmp_path, channels):
    _fill(layouts.Layout("torch_fidelity", tmp_path / "out", count=12), channels)
    images, names = _torch_fidelity(tmp_path / "out" / "images")
    assert names == [f"{i:05d}.png" for i in range(12)]
    want = np.stack([_image(i, channels) for i in range(12)])
    np.testing.assert_array_equal(images, np.broadcast_to(want, images.shape))
    assert len(_clean_fid(tmp_path / "out" / "images")) == 12


def test_a_folder_says_the_class_of_every_picture(tmp_path):
    _fill(layouts.Layout("folder", tmp_path, count=3, labels=["class4", "class0_bag", "class4"]))
    names = sorted(os.listdir(tmp_path / "images"))
    assert names == ["00000_class4.png", "00001_class0_bag.png", "00002_class4.png"]


@pytest.mark.parametrize("channels", [1, 3])
def test_adm_takes_the_file(tmp_path, channels):
    _fill(layouts.Layout("adm", tmp_path, count=40), channels)
    with np.load(tmp_path / "samples.npz") as archive:
        images = archive["arr_0"]
    assert images.dtype == np.uint8 and images.shape == (40, SIDE, SIDE, 3)
    order = np.random.default_rng(2020).permutation(40)
    want = np.stack([_image(i, channels) for i in range(40)])[order]
    np.testing.assert_array_equal(images, np.broadcast_to(want, images.shape))
    assert (order != np.arange(40)).any()
    # Its evaluator reads the header from the middle of the zip file, a batch of rows at a time.
    with zipfile.ZipFile(tmp_path / "samples.npz") as archive, archive.open("arr_0.npy") as member:
        assert np.lib.format.read_magic(member) == (1, 0)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
        assert (shape, fortran, dtype) == ((40, SIDE, SIDE, 3), False, np.dtype(np.uint8))
    assert len(picture_sets.open_pictures("images", str(tmp_path / "samples.npz"))) == 40


def test_geneval_takes_the_folders(tmp_path, geneval_file):
    path, lines = geneval_file
    prompts = prompt_files.read("prompts", str(path))
    layout = layouts.Layout("geneval", tmp_path / "out", prompts=prompts)
    assert layout.count == 12 and layout.prompt(5) == "a photo of a cow"
    _fill(layout)
    # evaluate_images.py: digits alone, metadata.jsonl by json.load, samples/^\d+\.png$, RGB
    seen = 0
    for name in sorted(os.listdir(tmp_path / "out" / "images")):
        place = tmp_path / "out" / "images" / name
        assert place.is_dir() and name.isdigit()
        with open(place / "metadata.jsonl") as file:
            assert json.load(file) == lines[int(name)]
        pictures = sorted(os.listdir(place / "samples"))
        assert all(re.match(r"^\d+\.png$", picture) for picture in pictures)
        for k, picture in enumerate(pictures):
            with Image.open(place / "samples" / picture) as image:
                np.testing.assert_array_equal(
                    np.asarray(image.convert("RGB")), _image(4 * int(name) + k)
                )
            seen += 1
    assert seen == 12


def test_dpg_takes_the_grids(tmp_path, dpg_folder):
    prompts = prompt_files.read("prompts", str(dpg_folder))
    layout = layouts.Layout("dpg", tmp_path / "out", prompts=prompts)
    assert layout.prompt(0) == "a long prompt of partiprompts102"
    _fill(layout)
    folder = tmp_path / "out" / "images"
    wanted = {path.stem for path in dpg_folder.glob("*.txt")}
    # compute_dpg_bench.py: the key is the name up to the first dot, four crops of R x R
    assert {name.split(".")[0] for name in os.listdir(folder)} == wanted
    for place, name in enumerate(sorted(wanted)):
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.size == (2 * SIDE, 2 * SIDE)
            r = SIDE
            boxes = [(0, 0, r, r), (r, 0, 2 * r, r), (0, r, r, 2 * r), (r, r, 2 * r, 2 * r)]
            for k, box in enumerate(boxes):
                np.testing.assert_array_equal(np.asarray(picture.crop(box)), _image(4 * place + k))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["size"] == [SIDE, SIDE] and manifest["prompts"]["count"] == 3


def test_mjhq_takes_the_categories(tmp_path, mjhq_file):
    path, table = mjhq_file
    prompts = prompt_files.read("prompts", str(path))
    _fill(layouts.Layout("mjhq", tmp_path / "out", prompts=prompts))
    for key, facts in table.items():
        assert (tmp_path / "out" / "images" / facts["category"] / f"{key}.png").is_file()
    assert len(_clean_fid(tmp_path / "out" / "images")) == 6
    assert len(_clean_fid(tmp_path / "out" / "images" / "art")) == 3


@pytest.mark.parametrize("name", ["torch_fidelity", "dpg"])
def test_a_stopped_command_goes_on_and_leaves_the_same_bytes(tmp_path, dpg_folder, name):
    prompts = prompt_files.read("prompts", str(dpg_folder))

    def layout(out):
        return layouts.Layout(name, tmp_path / out, prompts=prompts)

    _fill(layout("straight"))
    stopped = layout("stopped")
    stopped.begin(FACTS)
    for number in stopped.missing()[:-2]:
        stopped.write(number, _image(number))
    again = layout("stopped")
    with pytest.raises(ValueError, match="pictures fewer"):
        again.finish()
    again.begin(FACTS)
    assert again.missing() == list(range(again.count))[-4 if name == "dpg" else -2 :]
    _fill(again)
    files = sorted(
        p.relative_to(tmp_path / "straight") for p in (tmp_path / "straight").rglob("*.*")
    )
    for file in files:
        one, other = (tmp_path / out / file for out in ("straight", "stopped"))
        assert one.read_bytes() == other.read_bytes(), file
    assert len(list((tmp_path / "stopped").rglob("*.*"))) == len(files)


def test_processes_share_the_files(tmp_path, dpg_folder):
    prompts = prompt_files.read("prompts", str(dpg_folder))
    layout = layouts.Layout("dpg", tmp_path / "out", prompts=prompts)
    layout.begin(FACTS)
    shares = [layout.missing(i, 2) for i in range(2)]
    assert shares == [[*range(0, 4), *range(8, 12)], [*range(4, 8)]]


def test_a_folder_of_another_command_is_refused(tmp_path):
    layouts.Layout("folder", tmp_path / "out", count=3).begin(FACTS)
    with pytest.raises(ValueError, match=r"out: got .*settings \{'nfe': 4\}, as its manifest says"):
        layouts.Layout("folder", tmp_path / "out", count=3).begin(FACTS | {"settings": {"nfe": 5}})
    with pytest.raises(ValueError, match="count 3"):
        layouts.Layout("folder", tmp_path / "out", count=4).begin(FACTS)
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "x").write_text("")
    with pytest.raises(ValueError, match="new or empty folder"):
        layouts.Layout("folder", tmp_path / "else", count=3).begin(FACTS)


def test_layouts_want_their_own_prompts(tmp_path, geneval_file):
    prompts = prompt_files.read("prompts", str(geneval_file[0]))
    for name, said in (("dpg", "a folder of ID.txt"), ("mjhq", "meta_data.json")):
        with pytest.raises(ValueError, match=said):
            layouts.Layout(name, tmp_path, prompts=prompts)
    with pytest.raises(ValueError, match="evaluation_metadata.jsonl"):
        layouts.Layout("geneval", tmp_path, count=4)
    with pytest.raises(ValueError, match="layout: got 'fid', allowed folder | torch_fidelity"):
        layouts.Layout("fid", tmp_path, count=4)


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("a.txt", "\n \n", "there is none"),
        ("a.jsonl", '{"text": "x"}\n', "line 1 is no object with a prompt"),
        ("a.jsonl", "x\n", "prompts in UTF-8"),
        ("a.json", '{"../x": {"prompt": "x"}}', "prompt 1 is called '../x'"),
        ("a.json", '{"x": {"prompt": "x", "category": "../y"}}', "is of category '../y'"),
        ("a.json", '{"x": {"prompt": " "}}', "prompt 1 is empty"),
        ("a.json", "[1]", "no object of ids"),
    ],
)
def test_bad_prompts_are_one_line(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"prompts: got .*{said}") as caught:
        prompt_files.read("prompts", str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_prompt_a_line(tmp_path):
    (tmp_path / "p.txt").write_text("\ufeffa red fox\n\n  a blue bird \n", encoding="utf-8")
    found = prompt_files.read("prompts", str(tmp_path / "p.txt"))
    assert [item.text for item in found.items] == ["a red fox", "a blue bird"]
    with pytest.raises(ValueError, match="No such file"):
        prompt_files.read("prompts", str(tmp_path / "none.txt"))


def test_the_first_of_several_waits_for_the_others(tmp_path, monkeypatch):
    made = {i: layouts.Layout("folder", tmp_path / "out", count=4) for i in range(2)}
    monkeypatch.setattr(layouts, "PATIENCE", 0)
    with pytest.raises(ValueError, match="^out: got .* process 0 begins"):
        made[1].begin(FACTS, leads=False)
    made[0].begin(FACTS)
    made[1].begin(FACTS, leads=False)
    for number in made[0].missing(0, 2):
        made[0].write(number, _image(number))
    with pytest.raises(layouts.NotThere, match="allowed 2 more"):
        made[0].wait()
    (tmp_path / "out" / ".00001.png.123").write_bytes(b"half")  # of a process that was killed
    for number in made[1].missing(1, 2):
        made[1].write(number, _image(number))
    made[0].wait()
    made[0].finish()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["images", "manifest.json"]


def test_pictures_that_were_cut_off_are_made_again(tmp_path):
    layout = layouts.Layout("flat", tmp_path, count=3)
    _fill(layout, 1)
    (tmp_path / "00000.png").write_bytes(b"")
    (tmp_path / "00002.png").write_bytes((tmp_path / "00002.png").read_bytes()[:-4])
    assert layout.missing() == [0, 2]
