"""Where compiled programs are kept, so that the next process need not compile them again."""

import contextlib
import hashlib
import os
import pathlib
import platform
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

from driftar_jax.storage import paths

VARIABLE = "DRIFTAR_COMPILE_CACHE"
OFF = "off"
_SHORTEST = 0.3  # seconds of compilation; what is faster is not worth a file
_folder: str | None = None  # that `keep` chose
_asked = False


def keep(folder: str = "") -> str | None:
    """Have JAX keep compiled programs, and find those of earlier processes.

    The first call of a process decides; later ones without a folder do nothing.

    Args:
      folder: of the programs, or `off`. Nothing: where JAX itself was told to keep them
        (`JAX_COMPILATION_CACHE_DIR`); else in what `DRIFTAR_COMPILE_CACHE` names (a folder, or
        `off`); else in `driftar_jax` of the user's cache folder, apart for each kind of processor,
        for a program is of the machine that compiled it.

    Returns:
      A line to show where the folder cannot be used, and nothing is kept; else None.
    """
    global _asked
    if not folder and (_asked or jax.config.jax_compilation_cache_dir):
        return None
    _asked = True
    folder = folder or os.environ.get(VARIABLE) or _of_user()
    if folder == OFF:
        _use(None)
        return None
    try:
        # An address, or `~` where no home is known, would be made here as a folder of that name.
        # Absolute: the folder is used as long as the process runs, and its working folder may
        # change.
        path = pathlib.Path(os.path.abspath(paths.local("compile_cache", folder)))
        path.mkdir(parents=True, exist_ok=True)
        # Asked once, here: else each program that cannot be kept would bring a warning of its own.
        if not os.access(path, os.W_OK):
            raise OSError("it cannot be written")
    except ValueError as error:
        _use(None)
        return f"{error}; compiled programs are not kept"
    except OSError as error:
        _use(None)
        allowed = f"a folder that can be written, or {OFF} ({error.strerror or error})"
        return f"compile_cache: got {folder!r}, allowed {allowed}; compiled programs are not kept"
    _use(str(path))
    return None


def place() -> str | None:
    """Return the folder in which programs are kept at present; None: nowhere."""
    return jax.config.jax_compilation_cache_dir or None


@contextlib.contextmanager
def afresh() -> Iterator[None]:
    """Compile as if nothing had been kept, so that the seconds are those of the compiler.

    Where JAX itself was told of a folder, that stays.
    """
    kept = _folder
    if kept is None or place() != kept:
        yield
        return
    _use(None)
    try:
        yield
    finally:
        _use(kept)


def _use(folder: str | None) -> None:
    global _folder
    _folder = folder
    jax.config.update("jax_compilation_cache_dir", folder)
    if folder is not None and "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _SHORTEST)
    # JAX looks at its folder once, with the first program of the process.
    compilation_cache.reset_cache()


def _of_user() -> str:
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    return os.path.join(caches, "driftar_jax", f"{platform.machine()}-{_processor()}")


def _processor() -> str:
    """Return a short word that differs where processors have other instructions."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        # One home folder may serve several machines, and a program with instructions that a
        # processor lacks would end the process there.
        lines = {line for line in text.splitlines() if line.startswith(("flags", "Features"))}
    except OSError:
        lines = {platform.processor()}
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:8]
