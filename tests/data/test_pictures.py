"""Sheets of pictures: every picture in the row of its class, with its name."""

import numpy as np
from PIL import Image

from driftar_jax.data import pictures


def _read(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_a_row_for_each_class_with_its_name(tmp_path):
    """Three pictures of class 1 in red, one of class 0 in green, one of none in blue."""
    images = np.zeros((5, 32, 32, 3), np.uint8)
    labels = np.array([1, 0, 1, -1, 1])
    for image, label in zip(images, labels, strict=True):
        image[..., {1: 0, 0: 1, -1: 2}[int(label)]] = 255
    path = tmp_path / "sheet.png"
    pictures.save_by_class(path, images, labels, ["fish", "a longer name"])
    sheet = _read(path)
    assert sheet.shape[0] == 3 * 2 * 34  # enlarged twice, a margin of a pixel around each
    of_row = np.split(sheet, 3)
    for row, colour, count in zip(
        of_row, ([0, 0, 255], [0, 255, 0], [255, 0, 0]), (1, 1, 3), strict=True
    ):
        assert (row == colour).all(axis=-1).sum() == count * 64 * 64
        # The name: dark letters on white, left of the pictures.
        letters = np.flatnonzero((row.sum(axis=-1) < 300) & (row.max(axis=-1) < 150))
        assert len(letters) > 20
    words = [(row.max(axis=-1) < 150).any(axis=0) for row in of_row]
    assert np.flatnonzero(words[2])[0] < np.flatnonzero(words[1])[0]  # the longer name begins first


def test_one_picture_of_each_class_stands_over_its_name(tmp_path, monkeypatch):
    told = {}
    monkeypatch.setattr(pictures, "save_captioned", lambda *a: told.update(texts=a[2]))
    images = np.zeros((3, 8, 8, 1), np.uint8)
    pictures.save_by_class(tmp_path / "x.png", images, [2, 0, -1], ["a", "b", "c"])
    assert told["texts"] == ["c", "a", "no class"]


def test_a_text_stands_under_each_picture_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "pyplot", None)  # a second to import, at every first start
    images = np.zeros((7, 28, 56, 3), np.uint8)
    images[:, ..., 0] = 255
    path = tmp_path / "x.png"
    pictures.save_captioned(path, images, ["a"] * 6 + ["a name of three lines " * 9])
    sheet = _read(path)
    red = (sheet == [255, 0, 0]).all(axis=-1)
    assert red.sum() == 7 * (2 * 28) * (2 * 56)  # enlarged by whole pixels
    upper, lower = np.split(sheet, 2)
    dark = [(part.max(axis=-1) < 150).sum() for part in (upper, lower)]
    assert 6 * 5 < dark[0] < dark[1]
    # Of a picture larger than its place nothing is lost but detail.
    pictures.save_captioned(path, np.zeros((1, 400, 800, 3), np.uint8), [""])
    assert (_read(path) == 0).all(axis=-1).sum() == 80 * 160


def test_names_have_accents_and_other_alphabets():
    font = pictures.letters(11)
    missing = bytes(font.getmask("\uffff"))
    assert all(bytes(font.getmask(letter)) != missing for letter in "aéßñżλЖ")


def test_a_dollar_sign_in_a_text_is_a_letter_and_begins_no_formula(tmp_path):
    ink, white = [], np.full((1, 8, 8, 3), 255, np.uint8)
    for text in ("5 or 6 coins", "$5 or $6 coins", r"$\frac{ coins"):
        pictures.save_captioned(tmp_path / "sheet.png", white, [text])
        ink.append((np.asarray(Image.open(tmp_path / "sheet.png")) < 128).sum())
    assert 0 < ink[0] < ink[1] and ink[2]
