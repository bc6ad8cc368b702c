"""A profile of chosen steps, for TensorBoard or Perfetto."""

import contextlib
import os

import jax

from driftar_jax.config import wrong


class Trace:
    """Steps START to STOP, the last one left out, as `--profile=START:STOP` gives them."""

    def __init__(self, steps: str, folder: str | os.PathLike):
        """
        Args:
          steps: `START:STOP`, 0 <= START < STOP; the first steps hold the compilation.
          folder: where `jax.profiler` writes.

        Raises:
          ValueError: `steps` has another form.
        """
        start, colon, stop = steps.partition(":")
        whole = colon and start.isdecimal() and stop.isdecimal()
        if not whole or int(start) >= int(stop):
            raise wrong("profile", steps, "START:STOP, two step numbers that rise")
        self.start, self.stop = int(start), int(stop)
        self._folder, self._running = str(folder), False

    def waits(self, step: int) -> bool:
        """Say whether the trace begins or ends after this step, so that it has to be finished."""
        return step in (self.start - 1, self.stop - 1)

    @contextlib.contextmanager
    def step(self, number: int):
        """Trace around a step: start, name it, and stop when the last one is over."""
        if number == self.start:
            jax.profiler.start_trace(self._folder)
            self._running = True
        if not self._running:
            yield
            return
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield
        if number == self.stop - 1:
            self.close()

    def close(self) -> None:
        """End a trace that a stop has cut short."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
