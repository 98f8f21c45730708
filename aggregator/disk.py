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

    def refusal(self) -> Refusal:
        return Refusal(
            Kind.BUSY,
            "disk-low",
            "The service has too little free space to take part in a new cohort.",
            expected=f"at least {self.free_min} bytes",
            found=self.free_bytes,
            remedy="Its operator frees space, or lowers disk_free_min.",
            retry_after_s=_AGAIN_S,
        )


def full(settings: Settings, *, shared: bool = False) -> Full | None:
    """The folder that is below the mark. Asks the file system: call it in a thread.

    Args:
        shared: look only where other replicas would find no space either.
    """
    places = [] if settings.blob_url is not None else [settings.blobs_path]
    if settings.database.get_backend_name() == "sqlite":
        places += [settings.data_dir, Path(settings.database.database or "").parent]
    elif not shared:
        places.insert(0, settings.data_dir)
    for folder in dict.fromkeys(places):
        if folder.is_dir():
            free = shutil.disk_usage(folder).free
            if free < settings.disk_free_min:
                return Full(folder, free, settings.disk_free_min)
    return None
