"""Checks by name, in the environment at hand: ``nox -l`` lists them, ``nox -s lint`` runs one."""

from __future__ import annotations

import tempfile
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "tests"]


@nox.session
def lint(session: nox.Session) -> None:
    """Style, form and floors."""
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Strict types; and that a device needs nothing that other systems lack."""
    session.run("mypy")
    for system in ("darwin", "win32"):
        session.run(
            *("mypy", "--config-file", ".ci/portable.ini", "--platform", system),
            *("--cache-dir", f".mypy_cache/{system}", "-p", "client_sdk"),
        )
    for app in ("histogram", "custom"):  # what a partner's own type checker sees
        session.run("mypy", f"examples/{app}/app.py")


def _folder(name: str) -> None:
    """A session that runs the tests of one folder."""

    @nox.session(name=name)
    def run(session: nox.Session) -> None:
        session.run("pytest", f"tests/{name}", *session.posargs)


for _name in (
    *("unit", "property", "attacks", "faults"),
    *("http", "simulation", "conformance", "vectors"),
):
    _folder(_name)


@nox.session
def tests(session: nox.Session) -> None:
    """All tests."""
    session.run("pytest", "-n", "2", "--dist", "loadfile", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """All tests, and how much of the code they reach, with its floors."""
    session.run("pytest", "-n", "2", "--dist", "loadfile", "--cov", *session.posargs)
    session.run("coverage", "report", "--include=secagg/*,dp/*", "--fail-under=97")


@nox.session
def bench(session: nox.Session) -> None:
    """The short benchmarks."""
    vectors = ("--clients", "20", "--length", "100000")
    session.run("secagg", "doctor")
    session.run("secagg", "bench", "mask", *vectors, "--bits", "24", "--dropout", "0.1")
    session.run("secagg", "bench", "protocol", *vectors, "--repeat", "1")
    session.run(
        *("python", "benchmarks/service.py"),
        *("--clients", "12", "--length", "10000", "--dropout", "0"),
    )
    session.run(
        *("secagg", "simulate", "--clients", "20", "--length", "1000"),
        *("--dropout", "0.1", "--rounds", "2"),
    )
    session.run(
        *("python", "-m", "benchmarks.quality", "run", "--clients", "2", "--steps", "2"),
        *("--seeds", "1", "--rates", "4", "--rows", "FedAvg,FFA-LoRA"),
    )


@nox.session(venv_backend="venv")
def examples(session: nox.Session) -> None:
    """The examples with the wheel that a partner installs, in an environment of their own."""
    folder = tempfile.mkdtemp(dir=session.create_tmp())
    session.run("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ".")
    [wheel] = Path(folder).glob("secagg-*.whl")
    pip = ("--quiet", "--no-compile", "-c", "constraints.txt")
    session.install(*pip, str(wheel))
    session.run("python", "-I", "examples/check_install.py")
    apps = sorted(path.parent for path in Path("examples").glob("*/app.py"))
    for trains in (False, True):
        if trains:
            session.install(*pip, f"{wheel}[train]")
        for app in apps:
            if (app / "model.py").is_file() == trains:
                session.run("python", "-I", "-m", "unittest", "discover", str(app))


@nox.session
def docs(session: nox.Session) -> None:
    """What README and pages say is what the code does."""
    session.run("pytest", "tests/unit/docs", *session.posargs)


@nox.session
def mutation(session: nox.Session) -> None:
    """Takes each defence out in turn; takes hours."""
    session.run("python", "-m", "tests.mutants", *session.posargs)
