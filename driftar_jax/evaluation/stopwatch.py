"""Where the time of a program went, and how much memory it had at most."""

import contextlib
import resource
import sys
import time
from collections.abc import Iterator


class Ledger:
    """Seconds by name; names do not overlap unless they are nested on purpose."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time of the `with` block to `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def line(self) -> str:
        """Return one line for a reader, longest first."""
        order = sorted(self.seconds.items(), key=lambda item: -item[1])
        spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in order)
        return f"{spent}; at most {peak_memory() / 2**20:.0f} MiB of memory"


def peak_memory() -> int:
    """Return the bytes that this process held at most."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
