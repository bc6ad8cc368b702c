"""SIGTERM and Ctrl-C as a wish: the run saves what it has between two steps and ends well."""

import contextlib
import signal

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Wish:
    """Call it: the name of the signal that came, else ""."""

    def __init__(self):
        self._name = ""

    def __call__(self) -> str:
        return self._name

    def take(self, number: int, _) -> None:
        """The handler. A second signal ends the process: the last checkpoint stands."""
        self._name = signal.Signals(number).name
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)


@contextlib.contextmanager
def on_signals():
    """A `Wish` that SIGTERM and SIGINT set; how they were handled before comes back at the end."""
    wish = Wish()
    before = {each: signal.signal(each, wish.take) for each in SIGNALS}
    try:
        yield wish
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
