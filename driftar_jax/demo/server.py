"""The page and its requests over HTTP, for this machine alone.

It listens on 127.0.0.1 and answers nobody else: a request has to name this host (`Host`), and one
that asks for work has to come from the page itself (`Origin`), so that no other page of the browser
can use it. One request at a time has the device, few may wait, and nothing is written to disk.
"""

import http.server
import importlib.resources
import json
import sys
import threading
from typing import Any

from driftar_jax.config import wrong
from driftar_jax.demo.studio import Studio
from driftar_jax.storage import jsons

ADDRESS = "127.0.0.1"
MOST_WAITING = 4
MOST_BYTES = 2_000_000  # of a request
_PATIENCE = 30  # seconds until a connection that says nothing is closed
# The page is one file with script and style inside. It may load nothing, speak to this server
# alone, and stand in no frame of another page.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


class Busy(RuntimeError):
    """Too many requests wait; one line."""


class Desk:
    """Gives the device to one request after another, and refuses those beyond the queue."""

    def __init__(self, studio: Studio):
        """Nobody waits yet."""
        self._studio = studio
        # Two locks: whoever comes has to be counted, or refused, while another holds the device.
        self._device, self._count = threading.Lock(), threading.Lock()
        self._inside = 0

    def describe(self) -> list[dict]:
        """Do as `Studio.describe`; needs no device."""
        return self._studio.describe()

    def ask(self, what: str, request: Any) -> dict:
        """Return what `draw` or `fill` replies, once the device is free.

        Raises:
          Busy: too many wait. ValueError: as of `Studio`.
        """
        with self._count:
            # `_inside` counts the one at work as well, so as many as `MOST_WAITING` wait behind it.
            if self._inside > MOST_WAITING:
                allowed = f"{MOST_WAITING}: try again when one is done"
                raise Busy(str(wrong("waiting", self._inside, allowed)))
            self._inside += 1
        try:
            with self._device:
                return self._studio.fill(request) if what == "fill" else self._studio.draw(request)
        finally:
            with self._count:
                self._inside -= 1

    def warm(self) -> None:
        """Compile what is drawn if nothing is changed; requests wait meanwhile."""
        with self._device:
            self._studio.warm()


class Server(http.server.ThreadingHTTPServer):
    """`Server(port, desk)`; port 0 takes a free one."""

    # A browser keeps its connections open; they must not keep the program from ending.
    daemon_threads = True

    def __init__(self, port: int, desk: Desk):
        """It listens from now on; `serve_forever` answers.

        Raises:
          OSError: the port is taken.
        """
        super().__init__((ADDRESS, port), _Handler)
        self.desk = desk
        self.page = importlib.resources.files("driftar_jax.demo").joinpath("page.html").read_bytes()

    @property
    def hosts(self) -> tuple[str, ...]:
        """List what a request may call this server."""
        return tuple(f"{name}:{self.server_port}" for name in (ADDRESS, "localhost"))

    def handle_error(self, request, client_address) -> None:
        """Say nothing of a browser that went away; all else as the library does."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    # Answers tell no version of Python or of the library.
    server_version, sys_version = "driftar_jax", ""
    protocol_version = "HTTP/1.1"
    timeout = _PATIENCE

    def do_GET(self) -> None:
        if not self._from_here():
            return
        if self.path == "/":
            self._send(200, self.server.page, "text/html; charset=utf-8")
        elif self.path == "/models":
            self._json(200, self.server.desk.describe())
        else:
            self._refuse(404, wrong("path", self.path, "/ | /models"))

    def do_POST(self) -> None:
        if not self._from_here():
            return
        what = self.path.removeprefix("/")
        if what not in ("draw", "fill"):
            self._turn_away(404, wrong("path", self.path, "/draw | /fill"))
            return
        # A page of another site may send forms and plain text here unasked. For JSON its browser
        # asks this server first, which never gives leave.
        kind = self.headers.get_content_type()
        if kind != "application/json":
            self._turn_away(415, wrong("Content-Type", kind, "application/json"))
            return
        length = self.headers.get("Content-Length", "")
        # Before anything is read: a body without a stated length has no end that could be trusted.
        if not 0 <= _number(length) <= MOST_BYTES:
            self._turn_away(413, wrong("Content-Length", length, f"0 to {MOST_BYTES}"))
            return
        body = self.rfile.read(int(length))
        try:
            request = jsons.parse(body)
        except ValueError:
            self._refuse(400, wrong("request", f"{len(body)} bytes", "JSON"))
            return
        try:
            self._json(200, self.server.desk.ask(what, request))
        except Busy as busy:
            self._refuse(503, busy)
        except ValueError as error:
            self._refuse(400, error)

    def _from_here(self) -> bool:
        """Whether the request names this server and comes from its page; else it is refused."""
        hosts = self.server.hosts
        host, origin = self.headers.get("Host"), self.headers.get("Origin")
        # A site may let its own name lead to this machine. Its requests then count as its own in
        # the browser, but they carry that name.
        if host not in hosts:
            self._turn_away(403, wrong("Host", host, " | ".join(hosts)))
            return False
        # Programs send no origin. A browser sends it with every POST, and cannot be made to lie by
        # a page.
        if origin is not None and origin != f"http://{host}":
            self._turn_away(403, wrong("Origin", origin, f"http://{host}"))
            return False
        return True

    def _turn_away(self, status: int, error: Exception) -> None:
        """Refuse a request whose body is not wanted, and end the connection."""
        # The next request must not be looked for in the body.
        self.close_connection = True
        self._refuse(status, error)
        # A connection that is closed with bytes unread is reset, and the browser may never see the
        # answer. So they are thrown away, up to what an honest mistake may be.
        left = min(_number(self.headers.get("Content-Length", "")), 4 * MOST_BYTES)
        while left > 0 and (piece := self.rfile.read(min(left, 1 << 16))):
            left -= len(piece)

    def _refuse(self, status: int, error: Exception) -> None:
        self._json(status, {"error": (str(error).splitlines() or ["unknown error"])[0]})

    def _json(self, status: int, value: Any) -> None:
        # NaN is no JSON: a browser would refuse the whole answer, so it has to fail here, where it
        # is seen.
        self._send(status, json.dumps(value, allow_nan=False).encode(), "application/json")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is for the address."""


def _number(length: str) -> int:
    """Return the number a header states, or -1 for what is none or has too many digits."""
    # By its digits first: Python reads no number of thousands of them.
    few = length.isdecimal() and len(length) <= len(str(MOST_BYTES))
    return int(length) if few else -1
