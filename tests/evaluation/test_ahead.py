"""What lookahead left of plain decoding, what a call costs, and the tables of both."""

import json
import types

import numpy as np
import pytest

from driftar_jax.evaluation import ahead, windows
from driftar_jax.reports import ahead_table, page
from driftar_jax.sampling import batches, speculative
from driftar_jax.sampling.settings import Settings


def _made(tokens, images, calls=()):
    found = speculative.nothing(len(calls), 3)
    found = found.replace(
        backbone_calls=np.array(calls, np.int32), head_evaluations=4 * np.array(calls, np.int32)
    )
    return ahead.Outputs(
        tokens, images, batches.joined([found], len(calls)) if len(calls) else None
    )


def test_deviation_is_over_the_spread_of_plain_tokens():
    plain = np.array([[[1.0, -1.0], [3.0, -3.0]]], np.float32)
    moved = plain + np.array([[[0.0, 0.0], [0.3, 0.4]]], np.float32)
    images = np.zeros((1, 2, 2, 1), np.uint8)
    other = images.copy()
    other[0, 0, 1] = 3
    far = ahead.deviation(_made(plain, images), _made(moved, other))
    spread = np.sqrt(20 / 4)
    np.testing.assert_allclose(far["tokens"], [[0, np.sqrt(0.125) / spread]], rtol=1e-6)
    assert far["levels"].sum() == 3
    found = ahead._far([_made(plain, images)] * 2, [_made(plain, images), _made(moved, other)])
    assert found["deviation"] == pytest.approx(far["tokens"].mean() / 2)
    assert found["deviation_largest"] == far["tokens"].max()
    assert found["pixels_differing"] == 1 / 8 and found["pixel_levels_largest"] == 3


def test_costs_are_of_all_seeds_and_of_plain_decoding_known():
    empty = np.zeros((2, 12, 1), np.float32), np.zeros((2, 2, 2, 1), np.uint8)
    settings = Settings("drift", 12, lookahead=4, guidance=2.0)
    found = ahead._costs(settings, [_made(*empty, calls=(3, 6)), _made(*empty, calls=(4, 3))])
    assert found["backbone_calls"] == 4 and found["tokens_per_call"] == 3
    assert (found["backbone_calls_low"], found["backbone_calls_high"]) == (3, 6)
    assert (found["tokens_per_call_low"], found["tokens_per_call_high"]) == (2, 4)
    assert found["head_evaluations"] == 16
    plain = ahead._costs(settings.plainly, [_made(*empty)])
    assert plain["backbone_calls"] == 12 and plain["backbone_rows"] == 24
    assert plain["tokens_per_call"] == 1 and plain["head_evaluations"] == 12


def test_one_window_is_held_against_plain_decoding_of_its_noise(monkeypatch):
    """Exact and bounded, of the same images; a window that does not fit is refused before all."""
    tokens = np.array([[[1.0, -1.0], [3.0, -3.0]]], np.float32)
    images, calls, checked = np.zeros((1, 2, 2, 1), np.uint8), [], []
    run = types.SimpleNamespace(settings=lambda gamma: Settings("drift", 12), check=checked.append)

    def make(_, settings, condition, seed, batch_size):
        calls.append((settings.lookahead, settings.delta, condition, seed, batch_size))
        moved = tokens + settings.delta * bool(settings.lookahead)
        rounds = (6 if settings.delta else 12,) if settings.lookahead else ()
        return _made(moved, images, rounds)

    monkeypatch.setattr(ahead, "make", make)
    found = ahead.against_plain(run, 4, "labels", 3, 8)
    assert [c[:2] for c in calls[1:]] == [(4, 0.0), (4, 0.02)] and calls[0][0] == 0
    assert {c[2:] for c in calls} == {("labels", 3, 8)} and checked[0].lookahead == 4
    assert (found["exact"]["backbone_calls"], found["exact"]["deviation"]) == (12, 0)
    assert (found["bounded"]["tokens_per_call"], found["bounded"]["deviation"] > 0) == (2, True)


def test_the_arithmetic_of_a_call():
    """By hand: bound by reading at few rows, by products at many; heads count every evaluation."""
    chip = windows.Chip("a chip", 100.0, 1000.0)
    size = windows.Size("a host", backbone=50.0, head=10.0, evaluations=3)
    few = windows.seconds(size, chip, contexts=5, tokens=4, batch=1)
    assert few == pytest.approx(2 * 50 / 100 + 3 * 2 * 10 / 100)
    many = windows.seconds(size, chip, contexts=20, tokens=16, batch=8)
    assert many == pytest.approx(2 * 50 * 160 / 1000 + 3 * 2 * 10 * 128 / 1000)
    assert windows.ratio(size, chip, 4, 1) == pytest.approx(1)
    assert windows.ratio(size, chip, 16, 8) == pytest.approx(many / few)


def test_a_cost_is_of_as_many_calls_as_an_image_can_take(monkeypatch):
    """With a bound random weights settle all at once, and the prompt weighs like a call."""
    settings, rules = Settings("drift", 12, delta=1.0), []
    reader = types.SimpleNamespace(trial=lambda model, settings, size: size)
    subject = types.SimpleNamespace(model="model", params={}, reader=reader)

    def drafted(model, window, settings, *args):
        rules.append(window)
        return None, types.SimpleNamespace(batch_calls=6)

    monkeypatch.setattr(windows.drafted, "generate", drafted)
    monkeypatch.setattr(windows.plain, "generate", lambda *args: None)
    lines = []
    found = windows.costs(subject, settings, (4, 8), batch_sizes=(2,), rounds=1, tell=lines.append)
    assert {(w.size, w.delta) for w in rules} == {(4, 0.0), (8, 0.0)}
    assert [(r["window"], r["contexts"]) for r in found] == [(1, 1), (4, 5), (8, 10)]
    assert len(lines) == 3 and all(r["batch_size"] == 2 for r in found)


def _row(way, window, tokens, **more):
    row = {
        "run": "small",
        "method": way,
        "lookahead": window,
        "gamma": 0,
        "tokens_per_call": tokens,
    }
    ends = ("backbone_calls", "backbone_calls_low", "backbone_calls_high", "backbone_rows")
    row |= dict.fromkeys((*ends, "head_evaluations", "draft_calls"), 3)
    row |= dict.fromkeys(("tokens_per_call_low", "tokens_per_call_high"), tokens)
    for name in ("frechet", "accuracy", "energy_distance"):
        row |= {name: 0.5, f"{name}_std": 0.1}
    time = {"seconds_per_image": 0.1, "ratio": 1.5, "ratio_low": 1.0, "ratio_high": 2.0}
    return row | {"time": {"1": time}} | more


def _record():
    far = ("deviation", "deviation_99", "deviation_largest", "pixels_differing", "pixel_levels")
    far = dict.fromkeys(far, 0.25) | {"pixel_levels_largest": 7}
    rows = [
        _row("plain", 0, 1.0),
        _row("lookahead 16, 0", 16, 1.5, delta=0.0, bound="entropy", **far),
        _row("lookahead 16, 0.02, entropy", 16, 2.4, delta=0.02, bound="entropy", **far),
        _row("lookahead 16, 0.1, entropy", 16, 9.0, delta=0.1, bound="entropy", **far),
        _row("lookahead 16, 0.02, constant", 16, 7.0, delta=0.02, bound="constant", **far),
    ]
    call = {"batch_size": 1, "window": 16, "contexts": 20, "seconds": 0.5, "ratio": 3.0}
    contraction = [
        {"move": 0.02, "factor": 0.4, "later": 0.9, "expanding": 0.125}
        | {"by_entropy": [{"from": 0.1, "to": 0.2, "factor": 0.3, "tokens": 5}]}
    ]
    return {
        "facts": {"host": "0.5 million", "device": "a cpu"},
        "ahead": rows,
        "contraction": {"small": contraction},
        "calls": [call],
    }


def test_it_pays_where_a_call_settles_more_than_it_costs():
    """Measured hosts and windows alone, then the chip by arithmetic, which says so."""
    other = {"facts": {"host": "60 million", "device": "a cpu"}}
    other["windows"] = [
        {"batch_size": 8, "window": 16, "ratio": 1.2},
        {"batch_size": 8, "window": 4, "ratio": 1.1},  # nobody measured what it settles
    ]
    lines = ahead_table.predicted(_record(), [other])
    assert lines[2] == "| 0.5 million | a cpu | 1 | 16 | 3.00 | 2.40 | 0.80 |"
    assert lines[3] == "| 60 million | a cpu | 8 | 16 | 1.20 | 2.40 | 2.00 |"
    rest = lines[4:]
    assert len(rest) == 9 and all("| H100, arithmetic |" in line for line in rest)
    assert (
        rest[3] == "| 14 billion, one evaluation | H100, arithmetic | 1 | 16 | 1.00 | 2.40 | 2.40 |"
    )


@pytest.mark.parametrize(
    ("weights", "rows"),
    [
        ("random: speed only, the images mean nothing", 1),
        ("step 9 of runs/small", 1),
        ("step 9 of runs/large", 0),
    ],
)
def test_costs_of_another_checkpoint_say_nothing_of_this_one(weights, rows):
    facts = {"host": "60 million", "device": "a cpu", "weights": weights}
    other = {"facts": facts, "windows": [{"batch_size": 8, "window": 16, "ratio": 1.2}]}
    lines = ahead_table.predicted(_record(), [other])
    assert sum(line.startswith("| 60 million") for line in lines) == rows


def test_the_page_shows_lookahead_with_costs_of_other_hosts(tmp_path):
    (tmp_path / "small.json").write_text(json.dumps(_record()))
    facts = {"host": "60 million", "device": "a cpu"}
    calls = [{"batch_size": 8, "window": 16, "ratio": 1.2}]
    (tmp_path / "large.json").write_text(json.dumps({"facts": facts, "windows": calls}))
    (tmp_path / "page.md").write_text("# Page\n{{lookahead small}}\n")
    said = page.write([str(tmp_path)], str(tmp_path / "out.md"))
    text = (tmp_path / "out.md").read_text()
    assert "2 results" in said and "missing" not in said and "## large" not in text
    assert "| small | lookahead 16, 0.02, entropy | 3.0 (3 to 3) | 2.40 (2.40 to 2.40) |" in text
    assert "| small | 0.02 of the spread | 0.40 | 12% | 0.90 | 0.30 (E 0.10 to 0.20) |" in text
    assert "| 60 million | a cpu | 8 | 16 | 1.20 | 2.40 | 2.00 |" in text


def test_every_window_has_every_bound_once():
    loaded = types.SimpleNamespace(settings=lambda gamma: Settings("drift", 20))
    table = ahead.ways(loaded, (4, 8), (0.0, 0.1), ("entropy", "sigma"), gammas=(2,))
    names = [f"lookahead {w}, {n}" for w in (4, 8) for n in ("0", "0.1, entropy", "0.1, sigma")]
    assert list(table) == ["plain", "drafts, gamma 2", *names]
    asked = [(s.lookahead, s.delta, s.bound) for s in list(table.values())[2:5]]
    assert asked == [(4, 0.0, "entropy"), (4, 0.1, "entropy"), (4, 0.1, "sigma")]
