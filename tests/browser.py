"""A headless Chromium driven over its debugging pipe, with the standard library alone."""

import base64
import io
import json
import os
import select
import shutil
import subprocess
import time

import numpy as np
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
_FLAGS += ("--no-first-run", "--disable-extensions", "--disable-background-networking")
_FLAGS += ("--hide-scrollbars", "--remote-debugging-pipe")


def installed():
    """Path of the browser, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One tab. `errors` holds what its console and its scripts complained about."""

    def __init__(self, folder, patience=120):
        asks, self._write = os.pipe()
        self._read, answers = os.pipe()
        words = [installed(), *_FLAGS, f"--user-data-dir={folder}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{asks} 4>&{answers}', "bash", *words],
            pass_fds=(asks, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(asks)
        os.close(answers)
        self._number, self._rest, self._session, self._patience = 0, b"", None, patience
        self.errors = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def close(self):
        """End the browser."""
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def call(self, method, **params):
        """Send a command and return its result."""
        self._number += 1
        asked = {"id": self._number, "method": method, "params": params}
        if self._session:
            asked["sessionId"] = self._session
        os.write(self._write, json.dumps(asked).encode() + b"\0")
        end = time.monotonic() + self._patience
        while True:
            said = self._next(end)
            self._complaint(said)
            if said.get("id") == self._number:
                assert "error" not in said, said["error"]
                return said["result"]

    def _next(self, end):
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(end - time.monotonic(), 0))
            assert ready, "the browser does not answer"
            some = os.read(self._read, 1 << 20)
            assert some, "the browser ended"
            self._rest += some
        first, _, self._rest = self._rest.partition(b"\0")
        return json.loads(first)

    def _complaint(self, said):
        params = said.get("params", {})
        if said.get("method") == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"])
        elif said.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])
        elif said.get("method") == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.errors.append(params["args"])

    def run(self, script):
        """Value of a JavaScript expression."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def wait(self, script):
        """Wait until an expression is true."""
        end = time.monotonic() + self._patience
        while not self.run(script):
            assert time.monotonic() < end, f"{script} never came true"
            time.sleep(0.1)

    def show(self, url, width, height, dark=False):
        """Open an address in a window of that size."""
        self.resize(width, height, dark)
        self.call("Page.navigate", url=url)

    def resize(self, width, height, dark=False):
        """Change the window, and whether the reader likes it dark."""
        size = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def drag(self, points):
        """Press the mouse at the first point, move along the others and let it go."""
        kinds = ["mousePressed", *["mouseMoved"] * (len(points) - 1)]
        for kind, (x, y) in [*zip(kinds, points, strict=True), ("mouseReleased", points[-1])]:
            held = dict(button="left", buttons=0 if kind == "mouseReleased" else 1, clickCount=1)
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **held)

    def screenshot(self):
        """The window as uint8 `[H, W, 3]`."""
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
