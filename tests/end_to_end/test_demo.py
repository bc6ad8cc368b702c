"""The page over HTTP, and in a real browser where one is installed."""

import base64
import contextlib
import http.client
import io
import json
import os
import pathlib
import shlex
import threading
import time
import zlib

import browser
import numpy as np
import pytest
from PIL import Image

from driftar_jax.demo import server, studio

FOUR = {"label": "3", "num": 4, "seed": 5, "nfe": 2, "ar_steps": 2}


@pytest.fixture(scope="module")
def pairs(workdirs):
    """The tiny runs as the page shows them."""
    return [studio.read(workdirs.drift, workdirs.own), studio.read(workdirs.drift, None)]


@pytest.fixture(scope="module")
def desk(pairs):
    """What gives the device to requests."""
    return server.Desk(studio.Studio(pairs))


@contextlib.contextmanager
def _serving(desk):
    made = server.Server(0, desk)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture(scope="module")
def served(desk):
    """A server on a free port."""
    with _serving(desk) as made:
        yield made


def _ask(served, method, path, body=None, **headers):
    """Status and parsed answer."""
    wire = http.client.HTTPConnection("127.0.0.1", served.server_port, timeout=120)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None:
        headers = {"Content-Type": "application/json", **headers}
        body = body if isinstance(body, (bytes, str)) else json.dumps(body)
    wire.request(method, path, body, headers)
    answer = wire.getresponse()
    text = answer.read()
    wire.close()
    kind = answer.headers["Content-Type"]
    return answer.status, json.loads(text) if kind == "application/json" else text.decode()


def _sheet(reply):
    """`[S, n, H, W]` of a reply."""
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(reply["sheet"]))))
    rows, columns = reply["moments"], reply["num"]
    height, width = image.shape[0] // rows, image.shape[1] // columns
    return image.reshape(rows, height, columns, width).transpose(0, 2, 1, 3)


def _same(found, want):
    """With and without growth are two programs, which round differently."""
    assert np.abs(found.astype(int) - want).max() <= 1


def _png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_the_page_and_what_it_has_to_know(served):
    status, text = _ask(served, "GET", "/")
    assert status == 200 and "<title>Drift-AR" in text
    # All of it is in the file: nothing is fetched from elsewhere.
    assert "http://" not in text and "https://" not in text
    status, (first, second) = _ask(served, "GET", "/models")
    assert status == 200 and first["fills"] and first["size"] == [8, 8, 1]
    assert first["classes"] == list("0123456789") and first["grid"] == [2, 2]
    assert first["baseline"] and second["baseline"] is None


@pytest.mark.parametrize("head", ["own", "drift"])
def test_a_drawing_is_that_of_its_command_and_of_its_python(served, call, tmp_path, head):
    status, reply = _ask(served, "POST", "/draw", {**FOUR, "head": head})
    assert status == 200, reply
    assert reply["seconds"] > 0 and reply["compiling"] > 0
    _, again = _ask(served, "POST", "/draw", {**FOUR, "head": head})
    assert again["compiling"] == 0 and again["sheet"] == reply["sheet"]
    sheet = _sheet(reply)
    assert sheet.shape == (3, 4, 8, 8) and (sheet[0] == sheet[0, 0, 0, 0]).all()
    codes = np.frombuffer(base64.b64decode(reply["entropy"][-1][0]), np.uint8)
    assert codes.shape == (4,) and (codes < 255).all()
    words = shlex.split(reply["command"])
    assert words[:3] == ["python", "-m", "driftar_jax.sample"]
    out = tmp_path / "pictures"
    done = call("sample", *words[3:-1], f"--out={out}")
    assert (done.status, done.stderr) == (0, "")
    for number in range(4):
        with Image.open(out / f"{number:05d}_class3.png") as picture:
            _same(np.asarray(picture), sheet[-1, number])
    counts = json.loads((out / "counts.json").read_text())["per_image"]
    assert reply["counts"] == counts
    assert counts["head_evaluations"] == (4 if head == "own" else 2)
    names = {}
    exec(reply["python"], names)
    _same(names["images"][..., 0], sheet[-1])


def test_many_pictures_grow_in_fewer_moments(desk, monkeypatch):
    """All of them are decoded in every moment, which would take longer than to draw them."""
    whole = desk.ask("draw", FOUR)
    assert whole["moments"] == 3
    monkeypatch.setattr(studio, "_GROWN", 8)
    few = desk.ask("draw", FOUR)
    assert few["moments"] == 2
    np.testing.assert_array_equal(_sheet(few)[-1], _sheet(whole)[-1])


def test_a_part_is_filled_in_and_the_rest_stands(served):
    image = np.full((8, 8), 77, np.uint8)
    mask = np.zeros((8, 8), np.uint8)
    mask[1:4, 2:4] = 255
    # Strokes that are white on transparent white, as programs for drawing leave them.
    strokes = np.dstack([np.full_like(mask, 255), mask])
    asked = {**FOUR, "image": _png(image), "mask": f"data:image/png;base64,{_png(strokes)}"}
    status, reply = _ask(served, "POST", "/fill", asked)
    assert status == 200, reply
    (fillings,) = _sheet(reply)
    assert (fillings[:, mask == 0] == 77).all()
    assert (fillings[:, mask > 0] != 77).any(axis=1).all()
    assert reply["counts"]["backbone_calls"] == 1  # one patch is made anew


BAD = {
    "label: got 'eleven', allowed -1 to 9 or a class name": {"label": "eleven"},
    "label: got None, allowed text": {"label": None},
    "nfe: got 101, allowed 1 to 100": {"nfe": 101, "head": "own"},
    "nfe: got 2.5, allowed a whole number, 1 to 100": {"nfe": 2.5, "head": "own"},
    "ar_steps: got True, allowed 1 to 4": {"ar_steps": True},
    "guidance: got 0.5, allowed 1 to 10.0": {"guidance": 0.5},
    "num: got 5, allowed 1 to 4": {"num": 5},
    "seed: got -1": {"seed": -1},
    "head: got 'both', allowed drift | own": {"head": "both"},
    "head: got ['own'], allowed drift | own": {"head": ["own"]},
    "model: got 2, allowed 0 to 1": {"model": 2},
    "label: got '300 letters', allowed at most 200": {"label": "x" * 300},
}


@pytest.mark.parametrize("said", BAD)
def test_a_wrong_request_gets_one_line(served, said):
    status, reply = _ask(served, "POST", "/draw", {**FOUR, **BAD[said]})
    assert status == 400 and said.replace("label: got 'el", "labels: got 'el") in reply["error"]
    assert "\n" not in reply["error"]


def _huge():
    """A few bytes that say of themselves to be a PNG of 10^10 pixels."""
    bytes_of = bytearray(base64.b64decode(_png(np.zeros((8, 8), np.uint8))))
    bytes_of[16:24] = (10**5).to_bytes(4, "big") * 2
    bytes_of[29:33] = zlib.crc32(bytes_of[12:29]).to_bytes(4, "big")
    return base64.b64encode(bytes_of).decode()


def test_pictures_of_a_request_are_looked_at_before_they_are_unpacked(served):
    good = _png(np.full((8, 8), 255, np.uint8))
    for change, said in (
        ({"image": "!"}, "image: got 'no base64', allowed a PNG of 8x8 in base64"),
        ({"image": base64.b64encode(b"GIF89a").decode()}, "image: got 'UnidentifiedImageError'"),
        ({"image": _png(np.zeros((4000, 4000), np.uint8))}, "image: got '4000x4000'"),
        ({"image": _huge()}, "image: got 'DecompressionBombError', allowed a PNG of 8x8"),
        ({"mask": _png(np.zeros((8, 8), np.uint8))}, "mask: got 'no pixel'"),
        ({"mask": 3}, "mask: got 'int'"),
    ):
        status, reply = _ask(
            served, "POST", "/fill", {**FOUR, "image": good, "mask": good} | change
        )
        assert status == 400 and said in reply["error"], reply


def test_only_its_own_page_is_answered(served):
    port = served.server_port
    for headers, said in (
        ({"Host": "evil.example"}, "Host: got 'evil.example'"),
        ({"Host": f"evil.example:{port}"}, "Host: got"),
        ({"Origin": "http://evil.example"}, "Origin: got 'http://evil.example'"),
        ({"Origin": "null"}, "Origin: got 'null'"),
    ):
        for method, path, body in (("GET", "/models", None), ("POST", "/draw", FOUR)):
            status, reply = _ask(served, method, path, body, **headers)
            assert status == 403 and said in reply["error"]
    status, reply = _ask(served, "POST", "/draw", FOUR, Content_Type="text/plain")
    assert status == 415
    status, reply = _ask(served, "POST", "/draw", "{", Content_Type="application/json")
    assert (status, reply["error"]) == (400, "request: got '1 bytes', allowed JSON")
    assert _ask(served, "POST", "/draw", "[" * 99_999)[1]["error"].endswith("allowed JSON")
    assert _ask(served, "POST", "/draw", [1])[1]["error"].startswith("request: got 'list'")
    status, reply = _ask(served, "POST", "/draw", b"x" * (server.MOST_BYTES + 1))
    assert status == 413
    for length in ("\xb2", "1" * 5000, "-1", ""):
        status, reply = _ask(served, "POST", "/draw", "{}", Content_Length=length)
        assert status == 413 and reply["error"].startswith(f"Content-Length: got '{length[:99]}")
    assert _ask(served, "GET", "/../models/README.md")[0] == 404
    assert _ask(served, "POST", "/models", {})[0] == 404
    assert _ask(served, "GET", "/", Host=f"localhost:{port}")[0] == 200
    # A body that nobody wants is not taken for the next request of its connection.
    wire = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    for path, kind, status in (("/nowhere", "application/json", 404), ("/draw", "text/plain", 415)):
        wire.request("POST", path, "{}\r\n\r\n", {"Content-Type": kind})
        answer = wire.getresponse()
        assert (answer.status, bool(answer.read())) == (status, True)
        wire.request("GET", "/")
        answer = wire.getresponse()
        assert (answer.status, bool(answer.read())) == (200, True)
    wire.close()


def test_the_largest_checkpoint_comes_first_with_its_own_head(python):
    show = "from driftar_jax.demo import __main__ as demo; print(*demo._shipped()[0])"
    done = python("-c", show)
    assert done.stdout.split() == ["models/nextstep_emoji64", "models/nextstep_emoji64_own"]


class _Slow:
    """A studio whose drawings last until they are let go."""

    def __init__(self):
        self.go, self.inside, self.most = threading.Event(), 0, 0

    def draw(self, asked):
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.go.wait(30)
        self.inside -= 1
        return {}


def test_one_request_at_a_time_and_few_that_wait():
    slow = _Slow()
    desk, done = server.Desk(slow), []
    ask = lambda: done.append(desk.ask("draw", {}))  # noqa: E731
    threads = [threading.Thread(target=ask) for _ in range(1 + server.MOST_WAITING)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 30
    while desk._inside <= server.MOST_WAITING:
        assert time.monotonic() < end
        time.sleep(0.01)
    with pytest.raises(server.Busy, match="waiting: got 5, allowed 4: try again"):
        desk.ask("draw", {})
    slow.go.set()
    for thread in threads:
        thread.join()
    assert len(done) == len(threads) and slow.most == 1 and desk._inside == 0


def test_what_cannot_be_shown_is_said_at_once(call, workdirs, python):
    for words, said in (
        ((f"--workdir={workdirs.own}",), "workdir: got"),
        ((f"--workdir={workdirs.drift}", f"--baseline={workdirs.drift}"), "baseline: got"),
        ((f"--workdir={workdirs.drift}", "--baseline=a,b"), "baseline: got 'a,b', allowed 1"),
        ((f"--workdir={workdirs.drift}", "--port=70000"), "port: got 70000"),
        (("--baseline=a",), "baseline: got 'a', allowed none without --workdir"),
    ):
        done = call("demo", *words)
        assert done.status == 2 and said in done.stderr, done.stderr


def test_of_models_beside_it_those_of_other_tasks_are_left_out(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, config in (
        ("converted", {"task": "nextstep", "host": {"width": 8}}),
        ("other", {"host": {"name": "mar"}}),
    ):
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
    done = call("demo")
    assert (done.status, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "workdir: got None, allowed --workdir=FOLDER" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(browser.installed() is None, reason="no Chromium is installed here")
def test_a_browser_draws_plays_and_fills_in(served, desk, tmp_path):
    page = browser.Page(tmp_path / "profile")
    pictures = pathlib.Path(os.environ.get("DRIFTAR_SCREENSHOTS", tmp_path))
    address = f"http://127.0.0.1:{served.server_port}/"

    def shot(name):
        image = page.screenshot()
        Image.fromarray(image).save(pictures / f"demo_{name}.png")
        assert image.std() > 5 and len(np.unique(image.reshape(-1, 3), axis=0)) > 50
        return image

    try:
        page.show(address, 1200, 1400)
        page.wait("document.body?.dataset.state === 'ready'")
        page.run(
            "document.getElementById('nfe').value = 1; document.getElementById('num').value = 1"
        )
        page.run("document.getElementById('ask').requestSubmit()")
        page.wait("document.body?.dataset.state === 'done'")
        asked = {**page.run("page.asked")}
        for head in ("own", "drift"):
            want = desk.ask("draw", {**asked, "head": head})["counts"]
            cells = page.run(
                f"[...document.querySelectorAll('[data-head={head}] dd')].map(d => +d.textContent)"
            )
            assert cells == [want["backbone_calls"], want["head_evaluations"]]
        assert page.run("document.getElementById('times').textContent").endswith("×")
        page.run("document.getElementById('mist').value = 60; still()")
        page.run("document.getElementById('scrub').value = 1000; still()")
        light = shot("light")
        page.run("document.getElementById('easel').scrollIntoView({block: 'center'})")
        box = "document.getElementById('easel').getBoundingClientRect()"
        x, y, side = page.run(f"(b => [b.left, b.top, b.width])({box})")
        page.drag([(x + side * f, y + side * 0.2) for f in (0.1, 0.2, 0.3)])
        assert page.run("page.strokes") and page.run("covered().size") == 1
        page.run("refill()")
        page.wait("document.body?.dataset.state === 'filled'")
        assert page.run("document.getElementById('fillings').children.length") == 4
        shot("filled")
        page.resize(390, 844, dark=True)
        page.run("window.scrollTo(0, 0)")
        dark = shot("dark_390")
        assert page.run("document.documentElement.scrollWidth") <= 390
        assert dark.mean() < 90 < 180 < light.mean()
        assert page.errors == []
    finally:
        page.close()
