"""Signals that end a run as a wish: it saves what it has between two steps and ends well.

SIGTERM and Ctrl-C ask once; a second one ends the process, and the last checkpoint stands. SIGUSR1
(schedulers send it before the time is up) and SIGHUP (the terminal is gone, which some shells tell
twice) may come as often as they like.
"""

import contextlib
import signal

ONCE = (signal.SIGTERM, signal.SIGINT)
OFTEN = (signal.SIGHUP, signal.SIGUSR1)


class Wish:
    """Call it: the name of the first signal that came, else ""."""

    def __init__(self):
        self._name = ""

    def __call__(self) -> str:
        """Return the name of the signal that asked for the end, or ""."""
        return self._name

    def take(self, number: int, _) -> None:
        """Handle a signal."""
        self._name = self._name or signal.Signals(number).name
        if number in ONCE:
            for each in ONCE:
                signal.signal(each, signal.SIG_DFL)


@contextlib.contextmanager
def on_signals():
    """Yield a `Wish` that the signals set; how they were handled before comes back at the end.

    A SIGHUP that is ignored, as under nohup, stays ignored.
    """
    wish = Wish()
    wanted = [n for n in ONCE + OFTEN if n in ONCE or signal.getsignal(n) is not signal.SIG_IGN]
    before = {each: signal.signal(each, wish.take) for each in wanted}
    try:
        yield wish
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
