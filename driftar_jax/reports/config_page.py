"""Writes `docs/config.md`: every field of a config, from the fields themselves."""

from driftar_jax import config
from driftar_jax.storage.pages import write_page

_HEAD = """# Fields of a config

Written by `python -m driftar_jax.report --config_page=docs/config.md` from the fields themselves
(`driftar_jax/config.py`, `driftar_jax/hosts/*_host.py`, `driftar_jax/features/`,
`driftar_jax/vae/stored.py`); edit those.

A config file is a Python file with `get_config(size)`; those that come along stand in `configs/`.
`--config.SECTION.FIELD=VALUE` changes a field on the command line of `train`. A config has exactly
the fields of its task and its host: one that is missing, unknown or out of range is refused in one
line before anything is compiled. A field with a * may change when a run is resumed: it alters no
step that has been made.
"""
_FORMER = """## Constants that were fields

Older configs name them, and load and resume as long as they say this value; a workdir that says
another is sampled as before, and not resumed.
"""
_TITLES = {
    "task": "What is trained",
    "data": "Data",
    "host": "Host",
    "head": "The host's own head",
    "text": "Captions",
    "mask": "Training contexts",
    "prior": "Prior of Drift-AR",
    "drift": "Drift and decoder",
    "bank": "Bank of real grids",
    "draft": "Draft head",
    "loss": "Phases and weights",
    "classifier": "Classifier",
    "mae": "Masked autoencoder",
    "autoencoder": "Autoencoder of latents",
    "optim": "Optimiser",
    "train": "Run",
    "sample": "Sampling",
    "teacher": "Task draft",
    "mesh": "Devices",
}


def write(path: str) -> str:
    """Write the page; returns a line for the user."""
    write_page(path, text())
    return f"{path}: {len(config.fields())} fields"


def text() -> str:
    """Return the page."""
    sections: dict[str, list[str]] = {}
    former = []
    for name, field in config.fields().items():
        if field.former:
            former.append(f"| `{name}` | {field.before:g} | {field.says} |")
            continue
        section = name.split(".")[0] if "." in name else "task"
        star = "*" if field.changeable else ""
        cells = f"`{name}`{star}", field.allowed.replace("|", "\\|"), _for(name, field), field.says
        sections.setdefault(section, []).append(f"| {' | '.join(cells)} |")
    pages = [_HEAD]
    for section, rows in sections.items():
        title = _TITLES.get(section, section)
        table = "| field | allowed | of | what it does |\n|---|---|---|---|\n" + "\n".join(rows)
        pages.append(f"## {title}\n\n{table}\n")
    head = "| field | value | what it does |\n|---|---|---|\n"
    pages.append(f"{_FORMER}\n{head}" + "\n".join(former) + "\n")
    return "\n".join(pages)


def _for(name: str, field: config.Field) -> str:
    """Return the hosts and tasks that have a field; nothing where all have it."""
    hosts = [host for host in config.hosts() if name in config.host(host).fields]
    words = [] if len(hosts) in (0, len(config.hosts())) else [", ".join(hosts)]
    if field.tasks and field.tasks != config.GENERATIVE:
        words.append(f"task {' or '.join(field.tasks)}")
    return "; ".join(words)
