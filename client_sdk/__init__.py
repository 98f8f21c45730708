"""What a partner app embeds: join a task in three lines, with the device's own veto.

Importing this package does not import torch; ``LoraTrainer`` loads it on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from client_sdk.client import Client
from client_sdk.contribution import Contributor, TrainingJob
from client_sdk.errors import (
    ClientError,
    ClockError,
    ContributionError,
    EnrolmentError,
    LedgerRefusal,
    OutputError,
    PolicyRefusal,
    StateError,
    TaskRefusal,
    TransportError,
    Unreached,
)
from client_sdk.events import Event
from client_sdk.network.connections import NetworkError
from client_sdk.network.http import TransportSettings
from client_sdk.policy import PrivacyPolicy
from client_sdk.rounds.device import ParticipantSettings
from client_sdk.rounds.result import RunResult

if TYPE_CHECKING:
    from client_sdk.training.trainer import LoraTrainer

__all__ = [
    "Client",
    "ClientError",
    "ClockError",
    "ContributionError",
    "Contributor",
    "EnrolmentError",
    "Event",
    "LedgerRefusal",
    "LoraTrainer",
    "NetworkError",
    "OutputError",
    "ParticipantSettings",
    "PolicyRefusal",
    "PrivacyPolicy",
    "RunResult",
    "StateError",
    "TaskRefusal",
    "TrainingJob",
    "TransportError",
    "TransportSettings",
    "Unreached",
]


def __getattr__(name: str) -> Any:
    if name == "LoraTrainer":
        from client_sdk.training.trainer import LoraTrainer

        return LoraTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
