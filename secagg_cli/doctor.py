"""``secagg doctor``: is this machine fit, and if not, what is the fix."""

from __future__ import annotations

import importlib.metadata
import os
import re
import sqlite3
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import typer

from secagg_cli.exit_codes import EXIT_REFUSED
from secagg_cli.output import Format, FormatOption, Output

PYTHON_MIN = (3, 11)
AES_RATE_MIN = 500e6  # bytes a second; with AES instructions every current core does more
SQLITE_MIN = (3, 35)  # RETURNING
MEMORY_DEMO_BYTES = 8 * 2**30
_CHECKED_EXTRAS = ("cli", "train", "server", "demo")
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*([^;]*)(?:;\s*(.*))?")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]")


@dataclass(frozen=True)
class Check:
    """``required``: without it no command works; else only the named part is missing."""

    name: str
    ok: bool
    required: bool
    found: str
    fix: str | None = None


def doctor(format: FormatOption = Format.text) -> None:
    """Check the installation; exit code 1 if something that every command needs is missing."""
    with Output(format) as out:
        checks = list(run_checks())
        out.table(
            None,
            ["", "check", "found", "fix"],
            [
                [
                    "ok" if check.ok else ("MISSING" if check.required else "limited"),
                    check.name,
                    check.found,
                    "" if check.ok else (check.fix or ""),
                ]
                for check in checks
            ],
        )
        healthy = all(check.ok for check in checks if check.required)
        out.say("This machine is fit." if healthy else "Something is missing; see the fixes.")
        out.result({"ok": healthy, "checks": [asdict(check) for check in checks]})
        if not healthy:
            raise typer.Exit(EXIT_REFUSED)


def run_checks() -> Iterator[Check]:
    yield Check(
        "Python",
        sys.version_info >= PYTHON_MIN,
        True,
        ".".join(map(str, sys.version_info[:3])),
        f"Install Python {'.'.join(map(str, PYTHON_MIN))} or newer.",
    )
    yield from _packages()
    yield _hybrid_keys()
    yield _aes_rate()
    yield Check(
        "SQLite (server)",
        sqlite3.sqlite_version_info >= SQLITE_MIN,
        False,
        sqlite3.sqlite_version,
        "Use a Python that was built with a newer SQLite.",
    )
    yield from _folders()
    yield _memory()


def _packages() -> Iterator[Check]:
    groups: dict[str, list[tuple[str, str]]] = {"": []}
    for extra, name, bounds in _requirements():
        if extra == "" or extra in _CHECKED_EXTRAS:
            groups.setdefault(extra, []).append((name, bounds))
    for extra, wanted in groups.items():
        problems = [problem for name, bounds in wanted if (problem := _problem(name, bounds))]
        yield Check(
            f"packages of the {extra!r} extra" if extra else "packages",
            not problems,
            extra == "",
            "; ".join(problems) or f"all {len(wanted)} present",
            f"pip install -c constraints.txt 'secagg[{extra or 'demo'}]'",
        )


def _requirements() -> Iterator[tuple[str, str, str]]:
    """(extra, package, version bounds) from the installed metadata or the source tree."""
    source = Path(__file__).resolve().parent.parent / "pyproject.toml"
    if source.exists():
        project = tomllib.loads(source.read_text("utf-8"))["project"]
        lines = [*project["dependencies"]]
        for extra, requirements in project["optional-dependencies"].items():
            lines += [f'{line}; extra == "{extra}"' for line in requirements]
    else:
        lines = importlib.metadata.requires("secagg") or []
    for line in lines:
        match = _REQUIREMENT.fullmatch(line)
        if match is None or match[1] == "secagg":
            continue
        extra = _EXTRA.search(match[3] or "")
        yield (extra[1] if extra else "", match[1], match[2].strip())


def _problem(name: str, bounds: str) -> str | None:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"{name} is missing"
    found = _release(version)
    for bound in filter(None, (part.strip() for part in bounds.split(","))):
        operator, limit = re.match(r"(>=|<=|==|<|>)?\s*(.*)", bound).groups()  # type: ignore[union-attr]
        wanted = _release(limit)
        holds = {
            ">=": found >= wanted,
            "<": found < wanted,
            "<=": found <= wanted,
            ">": found > wanted,
            "==": found == wanted,
            None: True,
        }[operator]
        if not holds:
            return f"{name} {version} is not {bound}"
    return None


def _release(version: str) -> tuple[int, ...]:
    numbers = re.match(r"\d+(?:\.\d+)*", version)
    parts = [int(part) for part in numbers[0].split(".")] if numbers else []
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def _hybrid_keys() -> Check:
    fix = "pip install 'cryptography>=50' (its wheel brings an OpenSSL with ML-KEM)."
    try:
        from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
        from cryptography.hazmat.primitives.hpke import KEM

        MLKEM768PrivateKey.from_seed_bytes(bytes(64))
        _ = KEM.MLKEM768_X25519
        return Check("ML-KEM-768 and HPKE", True, True, "MLKEM768_X25519")
    except Exception as error:  # whatever is wrong, the reader wants to see it
        return Check("ML-KEM-768 and HPKE", False, True, f"{type(error).__name__}: {error}", fix)


def _aes_rate() -> Check:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    encryptor = Cipher(algorithms.AES256(os.urandom(32)), modes.CTR(bytes(16))).encryptor()
    zeros, buffer = bytes(1 << 17), bytearray(1 << 17)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(64):
            encryptor.update_into(zeros, buffer)
        best = max(best, 64 * len(zeros) / (time.perf_counter() - start))
    return Check(
        "AES-256-CTR",
        best >= AES_RATE_MIN,
        False,
        f"{best / 1e9:.2f} GB/s",
        "Masks will be slow: this processor, or this build of OpenSSL, uses no AES instructions.",
    )


def _folders() -> Iterator[Check]:
    import platformdirs

    places: tuple[tuple[str, Callable[[], Path]], ...] = (
        ("cache folder", lambda: platformdirs.user_cache_path("secagg")),
        ("state folder", lambda: platformdirs.user_state_path("secagg")),
        ("this folder", Path.cwd),
    )
    for name, place in places:
        problem, shown = None, f"the {name}"
        try:
            folder = place()
            shown = str(folder)
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except (OSError, RuntimeError) as error:  # the latter: no home folder
            problem = str(error)
        yield Check(
            f"{name} writable",
            problem is None,
            False,
            problem or shown,
            f"Make {shown} writable, or give commands another folder.",
        )


def _memory() -> Check:
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return Check("memory", True, False, "unknown")
    return Check(
        "memory (demo)",
        total >= MEMORY_DEMO_BYTES,
        False,
        f"{total / 2**30:.1f} GiB, {os.cpu_count()} cores",
        "Use `secagg demo --model tiny` or fewer --clients.",
    )
