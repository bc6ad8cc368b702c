r"""Write the page of results from result files alone.

  python -m driftar_jax.report --results=results --out=docs/results.md

A folder of results holds what `evaluate`, `evaluate_drafts` and `deviation` leave as JSON, folders
of `ablate`, and `page.md`: the prose, with a line `{{KIND NAME}}` wherever a result belongs.
"""

from absl import flags

from driftar_jax.cli import program as cli

_RESULTS = flags.DEFINE_list("results", None, "Folders of result files.")
_OUT = flags.DEFINE_string("out", None, "Markdown file to write; its pictures go to figures/.")
flags.mark_flags_as_required(["results", "out"])


def main(_) -> None:
    from driftar_jax.reports import page  # after the flags: loading takes seconds

    with cli.user_errors():
        print(page.write(_RESULTS.value, _OUT.value))


if __name__ == "__main__":
    cli.run(main)
