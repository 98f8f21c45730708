"""Writes ``docs/settings.md`` from the declarations of ``aggregator.settings.options``.

python -m docs.settings > docs/settings.md
"""

from __future__ import annotations

from aggregator.settings.describe import described

_PAGE = """# Settings of the service

This page is written by `python -m docs.settings`; a test compares it with the code.
`secagg config template --out secagg.toml` writes the same as a file to begin with, and
`secagg config show --config secagg.toml` prints the settings that count, each with the place
that it comes from; secrets are not shown.

A setting comes from an option of `secagg serve` (`--port 8080`), else from the environment
(`SECAGG_PORT=8080`), else from the TOML file that `--config` or `SECAGG_CONFIG` names
(`port = 8080`), else it has its default. An empty variable counts as one that is not set. What
cannot be used is refused at the start, all of it at once: where each was given, what was expected
and found, and for a name that no setting has, the nearest one.
{sections}"""
_HEAD = "\n## {title}\n\n| setting | default | unit, range | meaning |\n|---|---|---|---|\n"


def page() -> str:
    parts = []
    for each in described():
        if each.section:
            parts.append(_HEAD.format(title=each.section))
        limits = ", ".join(part for part in (each.unit, each.range) if part)
        parts.append(f"| `{each.name}` | {each.default} | {limits} | {each.meaning} |\n")
    return _PAGE.format(sections="".join(parts))


if __name__ == "__main__":
    print(page(), end="")
