"""The aggregator of the recorded run: its states, and what one device sends it."""

from __future__ import annotations

from typing import Any

from secagg import messages
from secagg.context import masking_set_digest, survivor_set_digest
from secagg.messages import (
    Deal,
    Deals,
    MaskedInput,
    Unmask,
)
from tests.kits.protocol_run import CLIENTS, recorded_run

RUN = recorded_run()
CONFIG = RUN.task.server
STATES = RUN.server_states
FACTS = STATES["sharing"].facts
INDEX, CTX = RUN.index, FACTS.ctx
SELF = FACTS.identity(INDEX)
EVERYONE = tuple(range(CLIENTS))
OTHERS = tuple(index for index in EVERYONE if index != INDEX)
FIRST = OTHERS[0]


def genuine(kind: type[Any]) -> Any:
    return messages.peek(RUN.server_events[kind.__name__].message, kind)[0]


DEALS, HEADER, UNMASK = genuine(Deals), genuine(MaskedInput), genuine(Unmask)
FIRST_DEAL = messages.peek(DEALS.deals[0], Deal)[0]
INBOX = messages.peek(RUN.client_events["Inbox"].message, messages.Inbox)[0]
DELIVERED = INBOX.deals[0]  # by the device FIRST
NAME = b"n" * 32  # a pseudonym
MASKING = masking_set_digest(CTX, EVERYONE)
SURVIVORS = survivor_set_digest(CTX, MASKING, EVERYONE)
