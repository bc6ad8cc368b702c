r"""Write the page of results from result files alone, or the page of config fields.

  python -m driftar_jax.report --results=results --out=docs/results.md
  python -m driftar_jax.report --config_page=docs/config.md

A folder of results holds what `evaluate`, `evaluate_drafts` and `deviation` leave as JSON, folders
of `ablate`, and `page.md`: the prose, with a line `{{KIND NAME}}` wherever a result belongs.
"""

from absl import flags

from driftar_jax.cli import program as cli
from driftar_jax.config import wrong

_RESULTS = flags.DEFINE_list("results", None, "Folders of result files.")
_OUT = flags.DEFINE_string("out", None, "Markdown file to write; its pictures go to figures/.")
_CONFIG_PAGE = flags.DEFINE_string("config_page", None, "Write the fields of configs here instead.")


def main(_) -> None:
    """Write the page of results, or the page of config fields."""
    from driftar_jax.reports import config_page, page  # after the flags: loading takes seconds

    with cli.user_errors():
        if _CONFIG_PAGE.value:
            if _RESULTS.value or _OUT.value:
                raise wrong("config_page", _CONFIG_PAGE.value, "nothing beside --results and --out")
            print(config_page.write(_CONFIG_PAGE.value))
            return
        for flag, value in (("results", _RESULTS.value), ("out", _OUT.value)):
            if not value:
                raise ValueError(f"{flag}: got nothing, allowed --{flag}=VALUE")
        print(page.write(_RESULTS.value, _OUT.value))


if __name__ == "__main__":
    cli.run(main)
