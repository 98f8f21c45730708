"""An app that sums statistics needs numpy, not torch."""

from __future__ import annotations

import subprocess
import sys

HEAVY = "torch transformers peft opacus sqlalchemy scipy pandas"


def test_importing_the_sdk_loads_nothing_heavy() -> None:
    code = (
        "import client_sdk, sys;"
        f"loaded = [m for m in {HEAVY!r}.split() if m in sys.modules];"
        "assert not loaded, loaded;"
        "assert client_sdk.Client and client_sdk.PrivacyPolicy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
