"""Variables of the environment that JAX refuses, in the form of a user's other mistakes.

JAX reads its `JAX_*` as it is imported, which is before the first line of a program: no `try` of a
program is around that.
"""

import re
import sys

USER_ERROR = 2
_CONFIG = "jax._src.config"


def watch() -> None:
    """End a program whose environment JAX refuses in one line and exit status 2."""
    before = sys.excepthook

    def end(kind, error, trace):
        if line := refused(error):
            print(f"driftar_jax: {line}", file=sys.stderr)
            sys.exit(USER_ERROR)
        before(kind, error, trace)

    sys.excepthook = end


def refused(error: BaseException) -> str:
    """Return `variable: got value, allowed values` where JAX refuses a variable, else ""."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or trace.tb_frame.f_globals.get("__name__") != _CONFIG:
        return ""
    match = re.fullmatch(r"invalid truth value '(.*)' for environment '(JAX_\w+)'", str(error))
    if match:
        return f"{match[2]}: got {match[1]!r}, allowed true | false"
    match = re.fullmatch(r'Invalid value "(.*)" for JAX flag (jax_\w+)', str(error))
    if not match:
        return ""
    # The list stands in the function that refused, and is that of the JAX that is installed.
    values = trace.tb_frame.f_locals.get("enum_values")
    allowed = " | ".join(values) if values else "a value that JAX knows"
    return f"{match[2].upper()}: got {match[1]!r}, allowed {allowed}"
