"""What a command needs beyond what a device does, which extra brings it, and how that is told."""

from __future__ import annotations

import itertools

EXTRA_OF = {
    **dict.fromkeys(("typer", "rich", "dp_accounting"), "cli"),
    **dict.fromkeys(("torch", "transformers", "peft", "opacus"), "train"),
    **dict.fromkeys(
        (
            *("sqlalchemy", "aiosqlite", "alembic", "pydantic", "pydantic_settings"),
            *("prometheus_client", "jinja2", "matplotlib", "structlog"),
        ),
        "server",
    ),
    **dict.fromkeys(("gguf", "chatterbot_corpus", "yaml", "psutil"), "demo"),
    "asyncpg": "postgres",
    "keyring": "keyring",
}
"""Module -> extra of ``pyproject.toml``."""


def missing_package(error: ModuleNotFoundError) -> tuple[str, str] | None:
    """(what is missing, the way out), if an extra would bring it."""
    package = (error.name or "").partition(".")[0]
    extra = EXTRA_OF.get(package)
    if extra is None:
        return None
    return f"This command needs the package {package}.", f"pip install 'secagg[{extra}]'"


def wants_json(arguments: list[str]) -> bool:
    """Whether a command line, which nobody may have read yet, asks for JSON."""
    pairs = itertools.pairwise(arguments)
    return "--format=json" in arguments or ("--format", "json") in pairs
