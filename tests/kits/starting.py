"""A service that does not start."""

from __future__ import annotations

from typing import Any

import pytest

from secagg.errors import ConfigurationError
from tests.kits.service import served


async def refused(settings: dict[str, Any]) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        async with served(**settings):
            pass
    assert caught.value.remedy
    return caught.value
