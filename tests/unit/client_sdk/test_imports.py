"""A device that sums statistics needs a few small packages, and neither torch nor the command."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import secagg
from secagg_cli.extras import EXTRA_OF

PACKAGES_MAX = 20
BYTES_MAX = 120_000_000
LATER = ("dp.planning.gaussian",)  # plans of continuous noise, which no device adds

# Only what a device installs can be imported; then every module of the floors that a device has,
# but those that say that they need the train extra.
BARE = f"""
import importlib, importlib.abc, pkgutil, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {[*EXTRA_OF, "scipy", "pandas"]!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""


def bare(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BARE + code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def project() -> dict[str, list[str] | dict[str, list[str]]]:
    found = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]
    assert isinstance(found, dict)
    return found


def installed_with(requirements: list[str]) -> dict[str, metadata.Distribution]:
    """What pip brings for them, by name."""
    found: dict[str, metadata.Distribution] = {}
    waiting = [Requirement(line) for line in requirements]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name in found:
            continue
        found[name] = metadata.distribution(name)
        waiting += [
            needed
            for line in found[name].requires or []
            if (needed := Requirement(line)).marker is None or needed.marker.evaluate({"extra": ""})
        ]
    return found


def test_a_device_installs_few_and_small_packages() -> None:
    dependencies = project()["dependencies"]
    assert isinstance(dependencies, list)
    found = installed_with(dependencies)
    assert len(found) <= PACKAGES_MAX, sorted(found)
    paths = [Path(str(f.locate())) for d in found.values() for f in d.files or []]
    size = sum(path.stat().st_size for path in paths if path.is_file())
    assert 50_000_000 < size <= BYTES_MAX


def test_importing_the_sdk_loads_nothing_heavy() -> None:
    done = bare(
        "import client_sdk\n"
        "assert client_sdk.Client and client_sdk.PrivacyPolicy\n"
        f"assert not {set(EXTRA_OF) | {'scipy', 'pandas'}!r} & set(sys.modules)\n"
    )
    assert done.returncode == 0, done.stderr


def test_an_app_that_only_imports_the_sdk_pays_for_nothing_yet() -> None:
    done = bare(
        "before = set(sys.modules)\n"
        "import client_sdk\n"
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "assert loaded == {'client_sdk'}, loaded\n"
        "assert set(client_sdk.__all__) <= set(dir(client_sdk))\n"
        "for name in sorted(set(client_sdk.__all__) - {'LoraTrainer'}):\n"
        "    assert getattr(client_sdk, name).__name__ == name\n"
        "print(client_sdk.__version__)\n"
        "try: client_sdk.Nobody\n"
        "except AttributeError as error: print(error)\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        secagg.__version__,
        "module 'client_sdk' has no attribute 'Nobody'",
    ]


def test_all_that_a_device_runs_without_training_runs_on_its_packages_alone() -> None:
    done = bare(
        "needs = []\n"
        "for floor in ('secagg', 'dp', 'client_sdk'):\n"
        "    package = importlib.import_module(floor)\n"
        "    for module in pkgutil.walk_packages(package.__path__, floor + '.'):\n"
        "        try: importlib.import_module(module.name)\n"
        "        except ModuleNotFoundError as error: needs.append((module.name, error.name))\n"
        "for name, missing in needs: print(name, missing)\n"
        "from dp.planning.epsilon import plan_epsilon\n"
        "assert 6.6 < plan_epsilon(1.4, 4, 1e-5)[0] < 6.7\n"
    )
    assert done.returncode == 0, done.stderr
    needs = dict(line.split() for line in done.stdout.splitlines())
    others = {name for name in needs if not name.startswith("client_sdk.training.")}
    assert others == set(LATER)
    trained = {missing.partition(".")[0] for name, missing in needs.items() if name not in LATER}
    assert {EXTRA_OF[package] for package in trained} == {"train"}


def test_the_command_says_which_extra_brings_what_it_needs() -> None:
    code = "from secagg_cli.entry import main\nmain()\n"
    done = bare(code, "doctor", "--format", "json")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "This command needs the package typer. [package-missing]",
        "pip install 'secagg[cli]'",
    ]
    assert done.stdout == (
        '{"error": {"reason": "package-missing", "message": "This command needs the package '
        'typer.", "remedy": "pip install \'secagg[cli]\'"}}\n'
    )
    assert bare(code, "doctor").stdout == ""


def test_every_extra_that_is_named_brings_the_package() -> None:
    extras = project()["optional-dependencies"]
    assert isinstance(extras, dict)
    distributions = metadata.packages_distributions()
    for package, extra in EXTRA_OF.items():
        lines = [Requirement(line) for line in extras[extra]]
        brought = {canonicalize_name(line.name) for line in lines} - {"secagg"}
        if package == "pydantic":  # of pydantic-settings
            brought |= set(installed_with(["pydantic-settings"]))
        names = {canonicalize_name(name) for name in distributions[package]}
        assert names & brought, (package, extra)
