"""Free space where the service keeps its data."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from aggregator.errors import Kind, Refusal
from aggregator.settings.options import Settings

_AGAIN_S = 30


@dataclass(frozen=True)
class Full:
    """``free_bytes`` in ``folder`` are fewer than the setting ``disk_free_min``."""

    folder: Path
    free_bytes: int
    free_min: int

    def refusal(self, again_s: int = _AGAIN_S) -> Refusal:
        """``again_s``: when it is worth another try."""
        return Refusal(
            Kind.BUSY,
            "disk-low",
            "The service has too little free space to take part in a new cohort.",
            expected=f"at least {self.free_min} bytes",
            found=self.free_bytes,
            remedy="Its operator frees space, or lowers disk_free_min.",
            retry_after_s=again_s,
        )


def places(settings: Settings, *, shared: bool = False) -> dict[str, Path]:
    """Folders whose file systems must have space, by what the metrics call them; each once.

    Args:
        shared: only those where other replicas would find no space either.
    """
    sqlite = settings.database.get_backend_name() == "sqlite"
    named: dict[str, Path] = {}
    if sqlite or not shared:
        named["data"] = settings.data_dir
    if settings.blob_url is None:  # an object store has metrics of its own
        named["blobs"] = settings.blobs_path
    file = settings.database.database if sqlite else None
    if file and (folder := Path(file).parent) != settings.data_dir:
        named["database"] = folder
    return named


def full(settings: Settings, *, shared: bool = False) -> Full | None:
    """The folder that is below the mark. Asks the file system: call it in a thread.

    Args:
        shared: look only where other replicas would find no space either.
    """
    for folder in places(settings, shared=shared).values():
        if folder.is_dir():
            free = shutil.disk_usage(folder).free
            if free < settings.disk_free_min:
                return Full(folder, free, settings.disk_free_min)
    return None
