"""Settings of the network with which no upload can go, or no try ever pauses."""

from __future__ import annotations

import math
from typing import Any

import pytest

from client_sdk import TransportSettings


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"chunk_bytes": 0}, "chunk_bytes is 0"),
        ({"request_s": math.inf}, "request_s is inf"),
        ({"transfer_s": 0.0}, "transfer_s is 0.0"),
        ({"poll_s": math.inf}, "poll_s is inf"),
        ({"ledger_s": 0}, "ledger_s is 0"),
        ({"backoff_first_s": 0.0, "jitter_s": 0.0}, "no pause between tries"),
        ({"backoff_max_s": 0.0, "jitter_s": 0.0}, "no pause between tries"),
    ],
)
def test_settings_that_cannot_work_are_refused_where_they_are_made(
    given: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        TransportSettings(**given)
    TransportSettings(patience_s=math.inf)
