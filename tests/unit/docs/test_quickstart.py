"""docs/quickstart-sdk.md: its first program runs, and its reference knows every public name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import client_sdk
from client_sdk import testing
from docs import sdk_api

DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_the_first_program_prints_what_the_page_says(tmp_path: Path) -> None:
    page = (DOCS / "quickstart-sdk.md").read_text()
    [program] = re.findall(r"run it:\n\n```python\n(.*?)```", page, re.DOTALL)
    path = tmp_path / "first_try.py"
    path.write_text(program)
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.stdout.splitlines() == [
        "all four: [10. 10. 10. 10. 10. 10. 10.]",
        "three:    [6. 6. 6. 6. 6. 6. 6.]",
        "2 charges; open",
    ], done.stderr


def test_the_reference_has_every_public_name() -> None:
    page = (DOCS / "sdk-api.md").read_text()
    listed = re.findall(r"^- \*\*`(\w+)`\*\*", page, re.MULTILINE)
    assert listed == [*client_sdk.__all__, *testing.__all__]
    assert re.findall(r"`(\w+)\(", page) == re.findall(r"`(\w+)\(", sdk_api.page())
