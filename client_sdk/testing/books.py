"""The one task of a test's aggregator: its signed manifest, its models, its budget, its ledger."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import nacl.signing
import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from client_sdk.enrolment import new_partner_key
from dp.accounting.budget import Account
from dp.accounting.statements import ReleaseFacts, guaranteed_variance, headline, lines
from dp.contracts import TaskSpec, build_manifest
from dp.contracts.algorithms.registry import has_control
from dp.errors import BudgetError
from dp.ledger.builder import LedgerBuilder
from dp.ledger.contributors import contributors_path
from dp.ledger.records import (
    ReleaseEntry,
    is_apart,
    list_file,
    release_record,
    task_record,
)
from dp.tlog import notes
from dp.transfer_sizes import model_length, needs_model
from secagg.context import roster_digest
from secagg.errors import ConfigurationError
from secagg.hashing import encode_parts
from secagg.http_api import ModelVersion
from secagg.limits import SEED_BYTES
from secagg.manifest import encode_manifest, manifest_digest
from secagg.secret import Secret
from secagg.server import ServerConfig, State, masking_set_of, survivors_of

_ORIGIN = "secagg.test/ledger"
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Release:
    """One released sum.

    Attributes:
        number: of the charge within the task, from 1; charged cohorts without a release count too.
        sums: float64, by segment name, in real units: the sum over ``survivors`` devices, with
            whatever noise the task adds. Without noise it is exact to half a ``grid`` per device.
        survivors: devices in the sum.
        masking_set: devices that masked, and were charged.
        cohort_size: devices in the roster.
        epsilon: what the task has cost so far, unamplified; None without noise.
        deviation: guaranteed standard deviation of the noise in one number of a segment, in real
            units, by name; 0 without noise.
        grid: distance of two neighbouring values of a segment, by name.
        new_version: of the model that the release made.
        leaf_index: of its record in the ledger.
        record: as the ledger has it, canonical JSON.
    """

    number: int
    sums: Mapping[str, Values]
    survivors: int
    masking_set: int
    cohort_size: int
    epsilon: float | None
    deviation: Mapping[str, float]
    grid: Mapping[str, float]
    new_version: int
    leaf_index: int
    record: bytes = field(repr=False)


Step = Callable[[NDArray[np.float32], Release], NDArray[np.float32]]


class Books:
    """Every number is made with the code of the service's own floors (``dp``, ``secagg``)."""

    def __init__(
        self, spec: TaskSpec, folder: Path, clock: Callable[[], float], step: Step | None
    ) -> None:
        """``folder``: for the models. ``clock``: Unix seconds.

        Raises:
            ConfigurationError: as ``secagg task create``; ``testing-task``.
        """
        self._clock = clock
        self._step = step
        self._models = folder
        task_key, self._ledger_key = Secret(os.urandom(SEED_BYTES)), Secret(os.urandom(SEED_BYTES))
        signing = nacl.signing.SigningKey(task_key.reveal())
        self.task_key = bytes(signing.verify_key)
        self.verifier = notes.verifier_key(
            _ORIGIN, bytes(nacl.signing.SigningKey(self._ledger_key.reveal()).verify_key)
        )
        self.partner = new_partner_key()
        self.manifest = build_manifest(
            spec,
            created_at=int(clock()),
            task_key=self.task_key,
            ledger_verifier=self.verifier,
            partner_keys=(self.partner.key,),
        )
        self._demand_served()
        self.encoded = encode_manifest(self.manifest)
        self.signature = bytes(signing.sign(encode_parts("manifest", self.encoded)).signature)
        self.config = ServerConfig(self.manifest, manifest_digest(self.encoded), task_key)
        budget = self.manifest.budget
        self.account = Account(delta=budget.delta, max_epsilon=budget.max_epsilon)
        self.charges: list[ReleaseFacts] = []
        self.releases: list[Release] = []
        self._log = LedgerBuilder(_ORIGIN)
        self.ledger: dict[str, bytes] = {}
        self._vector = np.zeros(model_length(self.manifest), np.float32)
        data = self._file(0)
        digest = hashlib.sha256(data).digest()
        leaf = self._append(task_record(self.encoded, self.signature, digest))
        self.model = self._stored(0, data, leaf)

    def _demand_served(self) -> None:
        """
        Raises:
            ConfigurationError: ``testing-task``.
        """
        manifest = self.manifest
        if (
            has_control(manifest)
            or manifest.clip_adaptation is not None
            or manifest.cohort.versions_back
        ):
            raise ConfigurationError(
                "testing-task",
                "The aggregator of client_sdk.testing has no server half for this task.",
                expected="a task without SCAFFOLD, FedBuff or an adaptive clip",
                found=manifest.algorithm,
                remedy="Test this one against `secagg serve`.",
            )

    @property
    def affordable(self) -> bool:
        """Whether the budget has room for one more release."""
        try:
            self.account.reserve("the next cohort", self.manifest)
        except BudgetError:
            return False
        return True

    def release(
        self, state: State, payload: NDArray[np.unsignedinteger], sums: dict[str, Values]
    ) -> Release:
        """Record a release, with the model that follows.

        Args:
            payload: the unmasked sum, lanes; its digest is recorded.
        """
        facts = ReleaseFacts(
            survivors=len(survivors_of(state)), masking_set_size=len(masking_set_of(state))
        )
        version = self.model.version + 1
        statements = lines(self.manifest, [*self.charges, facts])
        variance = 0
        if self.manifest.noise is not None:
            variance = guaranteed_variance(self.manifest, facts)
        release = Release(
            number=len(self.charges) + 1,
            sums=sums,
            survivors=facts.survivors,
            masking_set=facts.masking_set_size,
            cohort_size=state.facts.size,
            epsilon=headline(statements),
            deviation={
                s.name: float(np.sqrt(float(variance))) / s.scale for s in self.manifest.segments
            },
            grid={s.name: 1 / s.scale for s in self.manifest.segments},
            new_version=version,
            leaf_index=self._log.size,
            record=b"",
        )
        self._vector = self._next(release)
        data = self._file(version)
        entry = msgspec.structs.replace(
            self._entry(state),
            survivors=facts.survivors,
            contributors=_names(state, survivors_of(state)),
            not_in_sum=_names(state, set(masking_set_of(state)) - set(survivors_of(state))),
            sum_digest=hashlib.sha256(payload.tobytes()).digest(),
            new_model_digest=hashlib.sha256(data).digest(),
            outcome="released",
        )
        record = self._recorded(entry, facts)
        release = replace(release, record=record)
        self.releases.append(release)
        self.model = self._stored(version, data, release.leaf_index)
        return release

    def charge(self, state: State, reason: str) -> None:
        """Record that a cohort ended without a release after its devices may have sent."""
        entry = msgspec.structs.replace(
            self._entry(state),
            not_in_sum=_names(state, masking_set_of(state)),
            fault="devices",
            cause=reason[:64],
        )
        self._recorded(entry, entry.facts(self.manifest))

    def _entry(self, state: State) -> ReleaseEntry:
        facts = state.facts
        return ReleaseEntry(
            release=len(self.charges) + 1,
            cohort=facts.cohort,
            ctx=facts.ctx,
            roster_digest=roster_digest(facts.roster),
            cohort_size=facts.size,
            masking_set_size=len(masking_set_of(state)),
            survivors=0,
            contributors=(),
            model_digests=tuple(model.digest for model in facts.models),
            model_versions=tuple(model.version for model in facts.models),
            sum_digest=b"",
            new_model_digest=b"",
            released_at=int(self._clock()),
            outcome="charged",
            attempt=facts.attempt,
        )

    def _recorded(self, entry: ReleaseEntry, facts: ReleaseFacts) -> bytes:
        record = release_record(self.manifest, self.config.manifest_digest, self.charges, entry)
        if is_apart(entry):
            content = list_file(entry)
            self.ledger[contributors_path(hashlib.sha256(content).digest())] = content
        self._append(record)
        self.charges.append(facts)
        return record

    def _append(self, record: bytes) -> int:
        leaf, _ = self._log.append(record)
        self.ledger.update(self._log.files(leaf))
        self.ledger["checkpoint"] = notes.sign_checkpoint(self._log.checkpoint(), self._ledger_key)
        return leaf

    def _next(self, release: Release) -> NDArray[np.float32]:
        if self._step is not None:
            moved = np.asarray(self._step(self._vector.copy(), release), np.float32)
            if moved.shape != self._vector.shape or not np.isfinite(moved).all():
                raise ValueError(f"step gave {moved.shape}, or numbers that are not finite")
            return moved
        if not needs_model(self.manifest):
            sums = [release.sums[segment.name] for segment in self.manifest.segments]
            return np.concatenate(sums).astype(np.float32)
        return self._vector

    def _file(self, version: int) -> bytes:
        return safetensors.numpy.save(
            {"vector": self._vector},
            metadata={"task": self.manifest.task, "version": str(version)},
        )

    def _stored(self, version: int, data: bytes, leaf: int) -> ModelVersion:
        digest = hashlib.sha256(data).digest()
        (self._models / digest.hex()).write_bytes(data)
        return ModelVersion(
            version=version,
            digest=digest,
            size_bytes=len(data),
            opened_at=self._clock(),
            leaf_index=leaf,
        )


def _names(state: State, indices: Iterable[int]) -> tuple[bytes, ...]:
    return tuple(state.pseudonyms[index] for index in sorted(indices))
