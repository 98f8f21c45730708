"""One device of the recorded run, its messages, and changes to them, for tests of refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from secagg import client, messages
from secagg.graph.harary import Graph
from secagg.manifest import Noise
from secagg.messages import AdmittedModel, Inbox, Roster
from secagg.secret import Secret
from tests.kits.protocol_run import CLIENTS, recorded_run

_replace = msgspec.structs.replace
RUN = recorded_run()
CONFIG = RUN.device.config
OWN = CONFIG.certificate.identity_key
ADVERTISED = RUN.client_states["advertised"]
ROSTER = messages.peek(RUN.client_events["Roster"].message, Roster)[0]
INBOX = messages.peek(RUN.client_events["Inbox"].message, Inbox)[0]
SHARED = RUN.client_states["shared"]
SESSION = RUN.client_states["checked"].session
INDEX, CTX = SESSION.index, SESSION.ctx
EVERYONE = tuple(range(CLIENTS))
OTHERS = tuple(index for index in EVERYONE if index != INDEX)
GRAPH = Graph(CLIENTS)
OWN_MODEL = ROSTER.models[0]
SHORT = AdmittedModel(1, b"short")
NEWER = AdmittedModel(OWN_MODEL.version + 1, b"m" * 32)
STRANGER = Secret(b"s" * 32)


def entries(changes: dict[int, dict[str, Any]]) -> tuple[messages.RosterEntry, ...]:
    return tuple(
        _replace(entry, **changes.get(place, {})) for place, entry in enumerate(ROSTER.entries)
    )


def roster(**changes: Any) -> Roster:
    return _replace(ROSTER, **changes)


def certificates(shown: Roster = ROSTER) -> tuple[messages.Certificate, ...]:
    """As the entries give them, verified or not."""
    return tuple(
        messages.Certificate(
            entry.identity_key,
            shown.partners[entry.partner],
            entry.not_after,
            entry.certificate_signature,
        )
        for entry in shown.entries
    )


def rules(**changes: Any) -> client.ClientConfig:
    manifest = CONFIG.manifest
    return replace(CONFIG, manifest=_replace(manifest, cohort=_replace(manifest.cohort, **changes)))


def removable(*drops: int) -> client.ClientConfig:
    noise = Noise("skellam", share_variance=1, honest_min=1, removable_drops=drops)
    return replace(CONFIG, manifest=_replace(CONFIG.manifest, noise=noise))


def identity(index: int) -> bytes:
    return ROSTER.entries[index].identity_key


FIRST = OTHERS[0]
FIRST_ADVERT = dict(ROSTER.neighbour_adverts)[FIRST]
FIRST_MODEL = messages.peek(FIRST_ADVERT, messages.Advert)[0]
