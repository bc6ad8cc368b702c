"""What every command line shares: one line and exit status 2 for a user's mistake."""

import contextlib
import sys

from absl import app, flags, logging

USER_ERROR = 2


@contextlib.contextmanager
def user_errors():
    """Turn a `ValueError` or `OSError` of the set-up into one line and exit status 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        fail(str(error))


@contextlib.contextmanager
def stops():
    """Turn a run that had to stop (`RuntimeError`) into one line and exit status 1."""
    try:
        yield
    except RuntimeError as error:
        # A compiler's or driver's error is a RuntimeError too, and needs its traceback.
        if type(error) is RuntimeError or not type(error).__module__.startswith("driftar_jax"):
            raise
        fail(str(error), status=1)


def fail(message: str, status: int = USER_ERROR) -> None:
    """Print the first line of `message` to standard error and exit."""
    lines = message.strip().splitlines() or ["unknown error"]
    print(f"driftar_jax: {lines[0]}", file=sys.stderr)
    sys.exit(status)


def run(main) -> None:
    """`app.run` whose flag mistakes, unknown config fields included, follow the same form."""

    def quiet(argv):
        # Orbax tells every stage of a save at INFO, which absl turns on; our lines are printed.
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        main(argv)

    app.run(quiet, flags_parser=_parse)


def _parse(argv):
    try:
        rest = flags.FLAGS(argv, known_only=False)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        fail(_explain(error))
    if len(rest) > 1:
        fail(f"argument: got {rest[1]!r}, allowed only --flags")
    return rest


def _explain(error: Exception) -> str:
    text = " ".join(str(error.args[0] if error.args else error).split())
    return f"flags: {text}"
