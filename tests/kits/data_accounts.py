"""State folders of several devices over one data set."""

from __future__ import annotations

from pathlib import Path

import pytest

from client_sdk.accounts.data_door import DataChoice, DataDoor
from client_sdk.accounts.device_account import DeviceAccount
from client_sdk.enrolment import create_bundle
from client_sdk.errors import StateError
from client_sdk.state.journal import Journal
from client_sdk.state.keystore import open_storage_key
from dp.contracts import BudgetSpec
from dp.tlog.notes import verifier_key
from secagg.http_api import EnrolmentBundle
from tests.kits.device import PARTNER, TASK_KEY, make_manifest, sum_spec

VERIFIER = verifier_key("ledger.test", TASK_KEY)

NO_LIMIT = BudgetSpec(max_epsilon=None, delta=1e-5, releases_max=40)
ONE = make_manifest(sum_spec(task="one", budget=NO_LIMIT), VERIFIER)
TWO = make_manifest(sum_spec(task="two", budget=NO_LIMIT), VERIFIER)

NOW_S = 1_800_000_000.0

A, B, C = (letter * 32 for letter in (b"a", b"b", b"c"))


def new_bundle(task_key: bytes = TASK_KEY, not_after: int = 4_000_000_000) -> EnrolmentBundle:
    return create_bundle("http://127.0.0.1:9", task_key, VERIFIER, PARTNER.seed, not_after)


class Folder:
    """A state folder of one identity, and what an app says of its data."""

    def __init__(
        self,
        path: Path,
        data_id: str | None = "journal",
        bundle: EnrolmentBundle | None = None,
        *,
        registry: Path | None = None,
        root: Path | None = None,
        now_s: float = NOW_S,
    ) -> None:
        self.path = path
        self.bundle = bundle or new_bundle()
        self.now_s = now_s
        self.choice = DataChoice(data_id, registry or path.parent / "registry", root)

    @property
    def journal(self) -> Journal:
        return Journal(self.path, open_storage_key(self.path))

    def door(self) -> DataDoor:
        return DataDoor(self.journal, self.path, self.choice, self.bundle, self.now_s)

    def open(self, *, renew: bool = False) -> DeviceAccount:
        """A new process of this device."""
        account = DeviceAccount(self.journal, 1e-5)
        data = self.door().open(account, renew=renew)
        if data is not None:
            account.share(data)
        return account

    def refused(self, *, renew: bool = False) -> StateError:
        with pytest.raises(StateError) as caught:
            self.open(renew=renew)
        return caught.value
