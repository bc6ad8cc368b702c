"""The page of results: every number from a file, every gap named."""

import json
import pathlib

import pytest

from driftar_jax.reports import ablation_table, page, speculation_report, verdict
from driftar_jax.sweeps import ablation

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
        ("{{verdict first,second}}", "names of reports of evaluate, second is none"),
    ],
)
def test_a_wrong_line_is_refused(results, tmp_path, notes, complaint):
    (results / "page.md").write_text(notes)
    (results / "second.png").write_bytes(b"")
    with pytest.raises(ValueError, match="page.md: got") as error:
        page.write([str(results)], str(tmp_path / "page.md"))
    assert complaint in str(error.value) and not (tmp_path / "page.md").exists()


def test_a_file_that_is_no_result_is_refused(results, tmp_path):
    (results / "other.json").write_text("[1]")
    with pytest.raises(ValueError, match="other.json"):
        page.write([str(results)], str(tmp_path / "page.md"))


DAMAGED = {
    '{"rows": [{"method": "own", "frechet": "x"}]}': "results: got 'other', allowed figures",
    '{"rows": 5}': "results: got 'other', allowed figures as the program wrote them",
    "[" * 10**5: "nested without end",
    "<html>": "a web page",
}


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_results_are_one_line_in_every_reader(results, tmp_path, text):
    (results / "other.json").write_text(text)
    with pytest.raises(ValueError, match=DAMAGED[text]) as error:
        page.write([str(results)], str(tmp_path / "page.md"))
    assert "\n" not in str(error.value)
    folder = tmp_path / "others"
    folder.mkdir()
    (folder / "drafts.json").write_text(text)
    with pytest.raises(ValueError, match="^join: got .*, allowed "):
        speculation_report.join(tmp_path, [str(folder)])
    (folder / "arm.seed0.json").write_text(text)
    with pytest.raises(ValueError, match="^results: got .*arm.seed0.json.*a result of ablate"):
        ablation_table.read(folder)
    (folder / ablation.SPENT).write_text(text)
    with pytest.raises(ValueError, match="^out: got .*, allowed the seconds that ablate wrote"):
        ablation.spent(folder)


def test_a_page_has_its_letters_on_any_terminal(results, tmp_path, monkeypatch):
    monkeypatch.setattr(pathlib.Path, "write_text", None)  # asks the terminal which letters it has
    (results / "page.md").write_bytes("# 日本 ±\n".encode())
    page.write([str(results)], str(tmp_path / "page.md"))
    assert "# 日本 ±" in (tmp_path / "page.md").read_text(encoding="utf-8")
    (results / "page.md").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="^page.md: got .*, allowed a page in UTF-8"):
        page.write([str(results)], str(tmp_path / "page.md"))


def test_a_picture_is_taken_as_it_is(results, tmp_path):
    (results / "drawn.png").write_bytes(b"a picture")
    (results / "page.md").write_text("{{evaluate first}}\n{{picture drawn}}\n")
    page.write([str(results)], str(tmp_path / "page.md"))
    assert (tmp_path / "figures" / "drawn.png").read_bytes() == b"a picture"
    assert "![drawn](figures/drawn.png)" in (tmp_path / "page.md").read_text()


def _placed(method, nfe, frechet, ratio, calls=8):
    sizes = {"16": {"images_per_s": 10 * ratio}, "128": {"images_per_s": 40 * ratio}}
    row = _row(method, nfe, frechet, ratio) | {"backbone_calls": calls, "by_batch_size": sizes}
    return row | {"ar_steps": calls, "recall": 0.25}


def test_a_verdict_takes_the_rows_that_decide():
    rows = [
        _placed("own", 50, 95.0, 1.0),
        _placed("own, guidance 2", 50, 80.0, 0.5),
        _placed("own", 10, 99.0, 4.0),
        _placed("own", 2, 180.0, 9.0),
        _placed("prior mean", 0, 70.0, 12.0),
        _placed("drift", 1, 100.0, 10.0),
        _placed("drift, 2 AR steps", 1, 102.0, 20.0, calls=2),
        _placed("drift, guidance 2 trained", 1, 88.0, 10.0),
    ]
    words = "1024 per method and seed, 1 sampling seeds on each of 3 training seeds"
    text = verdict.lines({"some": {"rows": rows, "facts": {"images": words}}})
    found = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text[2:]]
    assert [row[0] for row in found] == [
        "some: own head at its best: `own, guidance 2` at 50",
        "some: its fastest row as near as one evaluation: `own` at 10",
        "some: one evaluation: `drift` at 1",
        "some: one evaluation at its best: `drift, guidance 2 trained` at 1",
        "some: one evaluation, fewest calls: `drift, 2 AR steps` at 1",
    ]
    # Distance, times the best of the own head, recall, calls, rows, evaluations, seconds, seeds.
    best = ["80.0 ± 2.0", "1.00", "0.250", "8", "", "400", "0.2 (16), 0.05 (128)", "3 x 1"]
    assert found[0][1:] == best
    assert [row[2] for row in found] == ["1.00", "1.24", "1.25", "1.10", "1.27"]
    assert [row[6] for row in found] == ["400", "80", "8", "8", "2"]
