"""The page of results: every number from a file, every gap named."""

import json

import pytest

from driftar_jax.reports import page

ROW = {"ar_steps": 8, "seeds": 3, "accuracy": 0.5, "accuracy_std": 0.01, "frechet_std": 2.0}


def _row(method, nfe, frechet, ratio):
    speed = {"images_per_s": 40 * ratio, "speed_ratio": ratio}
    ends = {f"{k}_{end}": v for k, v in speed.items() for end in ("low", "high")}
    return ROW | speed | ends | {"method": method, "nfe_per_step": nfe, "frechet": frechet}


REPORT = {
    "rows": [_row("own", 50, 90.0, 1.0), _row("own", 10, 99.0, 4.0), _row("drift", 1, 100.0, 10.0)],
    "facts": {"command": "python -m driftar_jax.evaluate --x", "images": "of 3 training seeds"},
    "floor": 1.25,
}


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "first.json").write_text(json.dumps(REPORT))
    return folder


def test_notes_are_filled_and_gaps_are_named(results, tmp_path):
    (results / "page.md").write_text("# Page\n{{evaluate first}}\nand\n{{ablation second}}\n")
    said = page.write([str(results)], str(tmp_path / "page.md"))
    text = (tmp_path / "page.md").read_text()
    assert "missing: second" in said and "Not measured yet." in text
    assert "| drift | 8 | 1 | 400 (400 to 400) | 10.00 (10.00 to 10.00) | 100.00 ± 2.00 |" in text
    assert "python -m driftar_jax.evaluate --x" in text and "real images: 1.25" in text
    # Welch, equal spreads: 4 degrees, t 2.7764, standard error 2 sqrt(2 / 3).
    assert "+10.00 from the own head at 50 in distance (95 % interval over training seeds" in text
    half = 2.776445 * 2 * (2 / 3) ** 0.5
    assert f"{10 - half:+.2f} to {10 + half:+.2f}" in text
    assert "`own` at 10 evaluations: at equal distance the gain is 2.5 times" in text
    assert (tmp_path / "figures" / "first.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("notes", "complaint"),
    [
        ("{{evaluates first}}", "did you mean 'evaluate'"),
        ("{{drafts first}}", "allowed evaluate first"),
    ],
)
def test_a_wrong_line_is_refused(results, tmp_path, notes, complaint):
    (results / "page.md").write_text(notes)
    with pytest.raises(ValueError, match="page.md: got") as error:
        page.write([str(results)], str(tmp_path / "page.md"))
    assert complaint in str(error.value) and not (tmp_path / "page.md").exists()


def test_a_file_that_is_no_result_is_refused(results, tmp_path):
    (results / "other.json").write_text("[1]")
    with pytest.raises(ValueError, match="other.json"):
        page.write([str(results)], str(tmp_path / "page.md"))


def test_a_picture_is_taken_as_it_is(results, tmp_path):
    (results / "drawn.png").write_bytes(b"a picture")
    (results / "page.md").write_text("{{evaluate first}}\n{{picture drawn}}\n")
    page.write([str(results)], str(tmp_path / "page.md"))
    assert (tmp_path / "figures" / "drawn.png").read_bytes() == b"a picture"
    assert "![drawn](figures/drawn.png)" in (tmp_path / "page.md").read_text()
