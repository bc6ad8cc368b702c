r"""Show both heads on a page of this machine: prompts, growth, seconds, filling in.

  python -m driftar_jax.demo
  python -m driftar_jax.demo --workdir=runs/drift --baseline=runs/own
  python -m driftar_jax.demo --workdir=runs/drift,models/mar_fashion28 --baseline=runs/own,

Without --workdir it shows the checkpoints of the folder models/. It listens on 127.0.0.1 alone and
writes nothing to disk. Ctrl-C ends it.
"""

import pathlib
import threading

from absl import flags

from driftar_jax.cli import program as cli
from driftar_jax.config import GENERATIVE, wrong
from driftar_jax.demo import server, studio
from driftar_jax.storage import checkpoints

_WORKDIR = flags.DEFINE_list("workdir", None, "Runs or exports of Drift-AR; those of models/.")
_BASELINE = flags.DEFINE_list(
    "baseline",
    None,
    "Runs of the own heads to show beside them, one each; empty where there is none.",
)
_VAE = flags.DEFINE_string("vae", None, "Folder of the autoencoder, where tokens are latents.")
_PORT = flags.DEFINE_integer("port", 8765, "Port of this machine; 0 takes a free one.")
_WARM = flags.DEFINE_boolean("warm", True, "Compile what is drawn first before it is asked for.")

SHIPPED = "models"


def main(_) -> None:
    """Serve the page until Ctrl-C, having read the checkpoints."""
    with cli.user_errors():
        if not 0 <= _PORT.value <= 65535:
            raise wrong("port", _PORT.value, "0 to 65535")
        pairs = [studio.read(*pair, vae=_VAE.value) for pair in _pairs()]
        desk = server.Desk(studio.Studio(pairs))
        try:
            page_server = server.Server(_PORT.value, desk)
        except OSError as error:
            raise wrong("port", _PORT.value, f"one that is free ({error.strerror})") from None
    for pair in pairs:
        beside = f", beside {pair.own.workdir}" if pair.own else ""
        print(f"{pair.drift.workdir}{beside}")
    print(f"http://{server.ADDRESS}:{page_server.server_port}/  (Ctrl-C ends)", flush=True)
    if _WARM.value:
        threading.Thread(target=desk.warm, daemon=True).start()
    try:
        page_server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        page_server.server_close()


def _pairs() -> list[tuple[str, str | None]]:
    """Return workdirs of Drift-AR, each with that of an own head or None."""
    drifts, owns = _WORKDIR.value, _BASELINE.value
    if not drifts:
        if owns:
            raise wrong("baseline", ",".join(owns), "none without --workdir")
        return _shipped()
    owns = [""] * len(drifts) if owns is None else owns
    if len(owns) != len(drifts):
        raise wrong("baseline", ",".join(owns), f"{len(drifts)}, as many as --workdir")
    return [(drift, own or None) for drift, own in zip(drifts, owns, strict=True)]


def _shipped() -> list[tuple[str, str | None]]:
    """Return the checkpoints of `models/`, each with an own head of the same host and pictures.

    The largest comes first, which draws the best pictures: the page opens with it.
    """
    folders = sorted(path.parent for path in pathlib.Path(SHIPPED).glob("*/config.json"))
    configs = {str(folder): checkpoints.read_config(folder) for folder in folders}
    kind = {
        name: (c["host"]["name"], c["data"]["name"])
        for name, c in configs.items()
        if c.get("task") in GENERATIVE
    }
    owns = {kind[name]: name for name in kind if configs[name]["task"] == "host"}
    drifts = [name for name in kind if configs[name]["task"] != "host"]
    drifts.sort(key=_bytes, reverse=True)
    if not drifts:
        raise wrong("workdir", None, f"--workdir=FOLDER, or a folder {SHIPPED}/ with checkpoints")
    return [(name, owns.get(kind[name])) for name in drifts]


def _bytes(folder: str) -> int:
    """Return the size of all files in a folder."""
    return sum(path.stat().st_size for path in pathlib.Path(folder).rglob("*") if path.is_file())


if __name__ == "__main__":
    cli.run(main)
