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


def full(settings: Settings) -> Full | None:
    """The folder that is below the mark. Asks the file system: call it in a thread."""
    places = [settings.data_dir, settings.blobs_path]
    if settings.database.get_backend_name() == "sqlite" and settings.database.database:
        places.append(Path(settings.database.database).parent)
    for folder in dict.fromkeys(places):
        if folder.is_dir():
            free = shutil.disk_usage(folder).free
            if free < settings.disk_free_min:
                return Full(folder, free, settings.disk_free_min)
    return None
