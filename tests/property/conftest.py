"""Properties run without deadlines: a busy machine is not a failure."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("secagg", deadline=None)
settings.load_profile("secagg")
