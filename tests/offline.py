"""No network: a call to another machine ends the test, or the process, that makes it."""

import sys

_HERE = {"", "localhost", "127.0.0.1", "::1", "0.0.0.0", "::"}


def _refuse(event: str, arguments: tuple) -> None:
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto"):
        # Names of files are addresses too, of sockets that never leave the machine.
        host = arguments[1][0] if isinstance(arguments[1], tuple) else None
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host is not None and host not in _HERE:
        raise RuntimeError(f"network: got a call to {host!r}, allowed none")


def start() -> None:
    """From here on, in this process; there is no way back."""
    sys.addaudithook(_refuse)
