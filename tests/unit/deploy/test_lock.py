"""The lock file and the bill of materials say what ``constraints.txt`` and the package say."""

from __future__ import annotations

import json
import re
from importlib.metadata import requires, version

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.lock import EXTRAS, LOCK, ROOT, SBOM

_RENEW = "python -m deploy.lock"


def pinned(text: str) -> dict[str, str]:
    found = re.findall(r"^([\w.-]+)==([\w.]+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


LOCKED = pinned(LOCK.read_text())


def test_every_version_is_that_of_the_constraints() -> None:
    constraints = pinned((ROOT / "constraints.txt").read_text())
    assert LOCKED
    assert {n: (v, constraints.get(n)) for n, v in LOCKED.items() if v != constraints.get(n)} == {}


def test_every_package_has_hashes_and_none_else_is_in_the_file() -> None:
    for block in re.split(r"\n(?=\S)", LOCK.read_text().strip()):
        first, *others = block.splitlines()
        assert re.fullmatch(r"[\w.-]+==[\w.]+( ;.*)? \\", first), (first, _RENEW)
        assert others
        for line in others:
            assert re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line), (line, _RENEW)


@pytest.mark.parametrize("extra", EXTRAS)
def test_all_that_an_extra_needs_is_locked(extra: str) -> None:
    waiting, seen = [("secagg", extra)], set()
    while waiting:
        name, wanted = waiting.pop()
        if name != "secagg" and version(name) != LOCKED[name]:
            continue  # another version here may need other things
        for line in requires(name) or ():
            needed = Requirement(line)
            marker = needed.marker
            if marker is not None and not any(
                marker.evaluate({"extra": each}) for each in ("", wanted)
            ):
                continue
            package = canonicalize_name(needed.name)
            if package != "secagg":
                assert package in LOCKED, (package, name, _RENEW)
            for each in needed.extras or {""}:
                if (package, each) not in seen:
                    seen.add((package, each))
                    waiting.append((package, each))
    assert seen


def test_the_bill_of_materials_is_of_the_lock_file() -> None:
    bill = json.loads(SBOM.read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    listed = {canonicalize_name(c["name"]): c["version"] for c in bill["components"]}
    assert listed == LOCKED, _RENEW
    for component in bill["components"]:
        assert component["purl"].startswith("pkg:pypi/")
