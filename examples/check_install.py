"""What a device installs, and what importing the SDK costs it.

python -I examples/check_install.py
"""

from __future__ import annotations

import sys
import time
from importlib import metadata
from pathlib import Path

PACKAGES_MAX = 20  # beside secagg itself, pip and setuptools
BYTES_MAX = 120_000_000
IMPORT_CPU_S = 0.3


def main() -> int:
    before = time.process_time()
    import client_sdk

    imported_s = time.process_time() - before
    folder = Path(client_sdk.__file__).parent
    assert Path(sys.prefix) in folder.parents, f"{folder} is not what was installed"
    assert (folder / "py.typed").is_file(), "the types are not shipped"
    assert client_sdk.__version__ == metadata.version("secagg")
    assert client_sdk.Client, "what is named is loaded on first use"
    used_s = time.process_time() - before
    own = {"pip", "setuptools", "secagg"}
    found = [each for each in metadata.distributions() if each.name not in own]
    files = {Path(str(file.locate())) for each in found for file in each.files or []}
    size = sum(file.stat().st_size for file in files if file.is_file() and file.suffix != ".pyc")
    print(
        f"{len(found)} packages, {size:,} bytes; CPU to import {imported_s:.2f} s, "
        f"with Client {used_s:.2f} s; Python {sys.version.split()[0]} on {sys.platform}"
    )
    fits = len(found) <= PACKAGES_MAX and size <= BYTES_MAX and imported_s <= IMPORT_CPU_S
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main())
