"""What every command line shares: one line and exit status 2 for a user's mistake."""

import contextlib
import errno
import os
import re
import shlex
import sys
import threading
import time
import traceback

import jax
from absl import app, flags, logging

from driftar_jax import config, seeds
from driftar_jax.cli import environment, files, help, streams
from driftar_jax.storage import compiled, paths
from driftar_jax.storage.reasons import reason
from driftar_jax.targets import precision

USER_ERROR = environment.USER_ERROR
_STARTED = time.perf_counter()

# Flags that read a checkpoint, which may lie on the hub; `train`, which writes there, refuses it.
_CHECKPOINTS = ("workdir", "baseline", "judge", "draft_workdir")
# Flags whose text is no path.
_TEXTS = ("prompt", "positive", "negative", "labels", "only")

_MATMUL = flags.DEFINE_enum(
    "matmul",
    None,
    ["default", "tf32", "float32"],
    "Digits of float32 products on GPUs and TPUs: the chip's own, TF32's ten bits, or all.",
)

_CACHE = flags.DEFINE_string(
    "compile_cache",
    "",
    "Folder of compiled programs, kept for later, or off; by default $DRIFTAR_COMPILE_CACHE, or "
    "driftar_jax in the user's cache folder.",
)

_KINDS = {"int": "a whole number", "float": "a number", "bool": "true | false"}


@contextlib.contextmanager
def user_errors():
    """Turn a `ValueError` or `OSError` of the set-up into one line and exit status 2."""
    try:
        yield
    except OSError as error:
        fail(_said(error))
    except ValueError as error:
        fail(str(error))


# What a disk says where a program cannot go on, whatever it was about to write.
_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EPERM)
_OF_DISKS += (errno.EIO, errno.ESTALE, errno.ENOTCONN)


def _said(error: OSError) -> str:
    """The line of an error of the system, which says its reason and perhaps a file."""
    if not error.strerror:
        return str(error)  # a line of ours
    if error.filename is None:
        return f"disk: got {error.strerror!r}, allowed one with room that can be read and written"
    name = os.fsdecode(error.filename)
    return f"file: got {name!r}, allowed one that can be read and written ({error.strerror})"


@contextlib.contextmanager
def stops():
    """Turn a run that had to stop into one line and exit status 1.

    That is a `RuntimeError` of this package, or an `OSError`: a full or vanished disk.
    """
    try:
        yield
    except OSError as error:
        fail(f"workdir: got {str(error)!r}, allowed one that can be written", status=1)
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


def command(program: str) -> str:
    """Return the command line of this process, `python -m driftar_jax.PROGRAM ...`, for a shell."""
    return shlex.join(["python", "-m", f"driftar_jax.{program}", *sys.argv[1:]])


def loaded(what: str) -> None:
    """Say that all is read and checked, and how long the program took for it."""
    print(f"{what}, loaded in {time.perf_counter() - _STARTED:.1f} s", flush=True)


def run(main, matmul: str = "tf32") -> None:
    """Run `app.run` whose flag mistakes, unknown config fields included, follow the same form.

    Args:
      main: takes what is left of the command line.
      matmul: `--matmul` where nobody says it: what makes or judges pictures asks for TF32's digits,
        within one level of 255; a TPU's own single pass of bfloat16 is off by up to four.
    """

    def quiet(argv):
        precision.choose(_MATMUL.value or matmul)
        # Orbax tells every stage of a save at INFO, which absl turns on, and a failed one's whole
        # traceback, several times; our lines are printed.
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
            logging.get_absl_logger().addFilter(lambda record: "/orbax/" not in record.pathname)
        seeds.fix()
        if line := compiled.keep(_CACHE.value):
            print(f"driftar_jax: {line}", file=sys.stderr)
        threading.excepthook = _thread_failed
        sys.unraisablehook = _unraisable
        try:
            main(argv)
        except OSError as error:
            if error.errno not in _OF_DISKS:
                raise
            fail(_said(error), status=1)
        except UnicodeEncodeError as error:
            if error.encoding != sys.getfilesystemencoding() or error.encoding == "utf-8":
                raise
            shown = ascii(error.object[error.start : error.end])
            fail(f"LC_ALL: got {error.encoding}, allowed UTF-8 for names of files with {shown}")
        except (RuntimeError, AssertionError) as error:
            _check_platform()
            if not type(error).__module__.startswith("driftar_jax"):
                raise
            fail(str(error), status=1)

    about = main.__globals__["__doc__"] or ""
    with streams.patient():
        app.run(quiet, flags_parser=lambda argv: _parse(argv, about))


def _check_platform() -> None:
    """End with one line where the environment asks for devices that are not there."""
    for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME"):
        if wanted := os.environ.get(name):
            try:
                jax.devices()
            except Exception as error:  # each platform fails in its own way
                why = reason(error)
                allowed = f"platforms that this machine has, such as cpu, or nothing ({why})"
                fail(f"{name}: got {wanted!r}, allowed {allowed}")


def _thread_failed(args) -> None:
    """Say nothing of a save that failed in the background: whoever waits for it will."""
    frames = traceback.extract_tb(args.exc_traceback)
    if not any("/orbax/" in frame.filename for frame in frames):
        threading.__excepthook__(args)


def _unraisable(args) -> None:
    """Say nothing of what a failed save had still in flight when its event loop ended."""
    if str(args.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(args)


def _parse(argv, about: str):
    if help.wanted(argv):
        print(help.text(argv, about))
        sys.exit(0)
    with user_errors():
        argv = _with_files(argv)
    try:
        rest = flags.FLAGS(argv, known_only=False)
    except Exception as error:  # a config file is a program, and may raise anything
        fail(_explain(error, argv))
    if len(rest) > 1:
        fail(f"argument: got {rest[1]!r}, allowed only --flags")
    with user_errors():
        _to_paths(argv)
    return rest


def _to_paths(argv: list[str]) -> None:
    """Give every flag that may be a path its `~`, and refuse addresses in their place."""
    for module, ours in flags.FLAGS.flags_by_module_dict().items():
        # Flags of libraries stay as they are: nobody here knows which of them are paths.
        if module != argv[0] and not module.startswith("driftar_jax"):
            continue
        for flag in ours:
            if flag.name.startswith("config") or not flag.present:
                continue
            change = _to_text if flag.name in _TEXTS else _to_path
            if isinstance(flag.value, str):
                flag.value = change(flag.name, flag.value)
            elif isinstance(flag.value, list):
                flag.value = [change(flag.name, v) if isinstance(v, str) else v for v in flag.value]


def _to_text(name: str, value: str) -> str:
    """A text as its bytes say it in UTF-8, whatever letters the terminal knows."""
    try:
        return value if value.isprintable() else os.fsencode(value).decode()
    except UnicodeDecodeError:
        raise config.wrong(name, value, "text in UTF-8") from None


def _to_path(name: str, value: str) -> str:
    on_hub = name in _CHECKPOINTS and value.startswith(paths.HUB)
    return value if on_hub else paths.local(name, value)


def _with_files(argv: list[str]) -> list[str]:
    """`argv` in which `--config` names an existing file; raises ValueError where there is none."""
    words = list(argv)
    for i, word in enumerate(argv[1:], 1):
        dashes, value = word[: -len(word.lstrip("-"))], word.partition("=")[2]
        if dashes and word.lstrip("-").startswith("config="):
            words[i] = f"{dashes}config={files.find(value)}"
        elif dashes and word.lstrip("-") == "config" and i + 1 < len(argv):
            words[i + 1] = files.find(argv[i + 1])
    return words


def _values(flag: str, argv: list[str]) -> list[str]:
    """What `--flag=VALUE` or `--flag VALUE` gives, in order."""
    words = [
        (w.lstrip("-").partition("="), after)
        for w, after in zip(argv, [*argv[1:], ""], strict=True)
    ]
    return [value if equals else after for (name, equals, value), after in words if name == flag]


def _explain(error: Exception, argv: list[str]) -> str:
    """`field: got value, allowed values` of what absl and ml_collections say at more length."""
    if isinstance(error, flags.UnrecognizedFlagError):
        ours = help.names(argv[0])
        near = config.nearest(error.flagname, ours)
        return f"flag: got '--{error.flagname}', allowed --{', --'.join(sorted(ours))}{near}"
    for word in argv[1:]:
        name = word.lstrip("-").partition("=")[0]
        field = name.removeprefix("config.")
        if field != name and field not in config.fields():
            near = config.nearest(field, config.fields())
            return str(config.wrong("config field", field, f"the fields of configs/{near}"))
    text = str(error.args[0] if error.args else error).strip()
    last = text.splitlines()[-1]
    if missing := re.fullmatch(r"Missing value for flag --(\S+)", text):
        return f"{missing[1]}: got nothing, allowed --{missing[1]}=VALUE"
    match = re.match(r"flag --(?P<name>[^=]+)=(?P<value>[^\n]*?): ", text)
    if match is None and isinstance(error, (AttributeError, KeyError)):
        return f"config field: got {last}, allowed the fields of the file that --config names"
    if match is None and not isinstance(error, flags.Error):
        files = ", ".join(_values("config", argv))
        return f"config: got {files!r}, allowed a file that loads ({type(error).__name__}: {last})"
    if match is None:
        return f"flags: got {' '.join(argv[1:])!r}, allowed --NAME=VALUE ({last})"
    name, value = match["name"], match["value"]
    if name == "config" and "\n" in text:
        kind, _, message = last.partition(": ")
        known = kind == "ValueError" and ", allowed " in message
        return message if known else f"config: got {value!r}, allowed a file that loads ({last})"
    if name.startswith("config."):
        field = name.removeprefix("config.")
        return str(config.wrong(field, value, config.fields()[field].allowed))
    if value == "None":
        return f"{name}: got nothing, allowed --{name}=VALUE"
    return f"{name}: got {value!r}, allowed {_KINDS.get(flags.FLAGS[name].flag_type(), 'text')}"
