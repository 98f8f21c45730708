"""What a partner app embeds: join a task in three lines, with the device's own veto.

Importing this package imports nothing else: what is named is loaded on first use, ``Client`` with
numpy and aiohttp, ``LoraTrainer`` with torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from client_sdk.accounts.period_limits import PeriodLimits
    from client_sdk.client import Client
    from client_sdk.conditions import Conditions
    from client_sdk.contribution import Contributor, ExampleSum, TrainingJob
    from client_sdk.errors import (
        ClientError,
        ClockError,
        ConfigurationError,
        ContributionError,
        EnrolmentError,
        LedgerRefusal,
        OutputError,
        PolicyRefusal,
        RemoteProtocolError,
        RunningLoopError,
        SecaggError,
        StateError,
        TaskRefusal,
        TransportError,
        Unreached,
    )
    from client_sdk.events import Event
    from client_sdk.explanation import Explanation, UnitCost
    from client_sdk.failures import TrainingFailure
    from client_sdk.forgetting import Forgotten
    from client_sdk.network.connections import NetworkError
    from client_sdk.network.http import TransportSettings
    from client_sdk.policy import PrivacyPolicy
    from client_sdk.repointing import repoint_bundles
    from client_sdk.rounds.device import ParticipantSettings
    from client_sdk.rounds.failing import FailingTask
    from client_sdk.rounds.participant import Outcome
    from client_sdk.rounds.result import RunResult
    from client_sdk.rounds.steering import StopSignal
    from client_sdk.training.lora import base_fingerprint
    from client_sdk.training.trainer import LoraTrainer

__version__: str  # of the installed package

__all__ = [
    "Client",
    "ClientError",
    "ClockError",
    "Conditions",
    "ConfigurationError",
    "ContributionError",
    "Contributor",
    "EnrolmentError",
    "Event",
    "ExampleSum",
    "Explanation",
    "FailingTask",
    "Forgotten",
    "LedgerRefusal",
    "LoraTrainer",
    "NetworkError",
    "Outcome",
    "OutputError",
    "ParticipantSettings",
    "PeriodLimits",
    "PolicyRefusal",
    "PrivacyPolicy",
    "RemoteProtocolError",
    "RunResult",
    "RunningLoopError",
    "SecaggError",
    "StateError",
    "StopSignal",
    "TaskRefusal",
    "TrainingFailure",
    "TrainingJob",
    "TransportError",
    "TransportSettings",
    "UnitCost",
    "Unreached",
    "base_fingerprint",
    "repoint_bundles",
]


_HOMES = {
    "Client": "client",
    "Conditions": "conditions",
    "Contributor": "contribution",
    "Event": "events",
    "Explanation": "explanation",
    "ExampleSum": "contribution",
    "FailingTask": "rounds.failing",
    "Forgotten": "forgetting",
    "LoraTrainer": "training.trainer",
    "NetworkError": "network.connections",
    "Outcome": "rounds.participant",
    "ParticipantSettings": "rounds.device",
    "PeriodLimits": "accounts.period_limits",
    "PrivacyPolicy": "policy",
    "RunResult": "rounds.result",
    "StopSignal": "rounds.steering",
    "TrainingFailure": "failures",
    "TrainingJob": "contribution",
    "TransportSettings": "network.http",
    "UnitCost": "explanation",
    "base_fingerprint": "training.lora",
    "repoint_bundles": "repointing",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("secagg").__version__
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{_HOMES.get(name, 'errors')}")
    value = globals()[name] = getattr(home, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
