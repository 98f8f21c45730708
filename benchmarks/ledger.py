"""What listing whole masking sets costs: bytes of a release, and time to write, audit and recover.

    python benchmarks/ledger.py --devices 10000 --releases 20

A ledger in memory, of one task without noise; a twentieth of each masking set is not in the sum.
CPU seconds of this process. Recovery walks the whole log for a device that is in the last release
alone.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nacl.signing

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from client_sdk.accounts.device_account import DeviceAccount
from client_sdk.accounts.recovery import recover
from client_sdk.ledger.watch import LedgerWatch
from client_sdk.state.journal import Journal
from client_sdk.state.keystore import open_storage_key
from dp.accounting.statements import ReleaseFacts
from dp.contracts import BudgetSpec, CohortSpec, SegmentSpec, TaskSpec, build_manifest
from dp.ledger.builder import LedgerBuilder
from dp.ledger.contributors import contributors_path
from dp.ledger.records import ReleaseEntry, is_apart, list_file, release_record, task_record
from dp.ledger.verification import verify_ledger
from dp.tlog.notes import sign_checkpoint, verifier_key
from secagg.context import context, pseudonym
from secagg.hashing import encode_parts
from secagg.keys import identity_public_key
from secagg.manifest import Manifest, encode_manifest, manifest_digest
from secagg.messages import AdmittedModel
from secagg.secret import Secret

ORIGIN = "ledger.benchmark"
TASK_SEED, LEDGER_SEED, DEVICE_SEED = (Secret(bytes([n]) * 32) for n in (1, 2, 3))
VERIFIER = verifier_key(ORIGIN, identity_public_key(LEDGER_SEED))


class Files:
    """The ledger as its files, in the place of the network."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    async def ledger(self, path: str) -> bytes | None:
        return self.files.get(path)


def manifest_for(devices: int, releases: int) -> Manifest:
    spec = TaskSpec(
        task="benchmark",
        algorithm="sum",
        privacy="none",
        segments=(SegmentSpec(name="x", length=16, clip=1.0),),
        cohort=CohortSpec(size_min=devices, size_max=devices, survivors_min=devices * 9 // 10),
        budget=BudgetSpec(max_epsilon=None, releases_max=releases),
    )
    key = identity_public_key(TASK_SEED)
    return build_manifest(
        spec, created_at=0, task_key=key, ledger_verifier=VERIFIER, partner_keys=[key]
    )


def release(manifest: Manifest, number: int, devices: int, last: bool) -> ReleaseEntry:
    cohort, roster, model = (hashlib.sha256(b"%d %d" % (n, number)).digest() for n in range(3))
    ctx = context(
        task=manifest.task,
        cohort=cohort,
        attempt=0,
        manifest_digest=manifest_digest(encode_manifest(manifest)),
        models=(AdmittedModel(number - 1, model),),
        roster=roster,
    )
    names = [os.urandom(32) for _ in range(devices)]
    if last:
        names[0] = pseudonym(DEVICE_SEED, ctx)
    survivors = devices - devices // 20
    return ReleaseEntry(
        release=number,
        cohort=cohort,
        attempt=0,
        ctx=ctx,
        roster_digest=roster,
        cohort_size=devices,
        masking_set_size=devices,
        survivors=survivors,
        contributors=tuple(names[:survivors]),
        not_in_sum=tuple(names[survivors:]),
        model_digests=(model,),
        model_versions=(number - 1,),
        sum_digest=model,
        new_model_digest=model,
        released_at=number,
        outcome="released",
    )


def measure(devices: int, releases: int) -> dict[str, Any]:
    manifest = manifest_for(devices, releases)
    encoded = encode_manifest(manifest)
    signing = nacl.signing.SigningKey(TASK_SEED.reveal())
    signature = signing.sign(encode_parts("manifest", encoded)).signature
    builder = LedgerBuilder(ORIGIN, [task_record(encoded, signature)])
    entries = [release(manifest, n, devices, n == releases) for n in range(1, releases + 1)]
    facts: list[ReleaseFacts] = []
    lists: dict[str, bytes] = {}
    record = b""
    began = time.process_time()
    for entry in entries:
        record = release_record(manifest, manifest_digest(encoded), facts, entry)
        builder.append(record)
        facts.append(entry.facts(manifest))
        if is_apart(entry):
            data = list_file(entry)
            lists[contributors_path(hashlib.sha256(data).digest())] = data
    written = time.process_time()
    checkpoint = {"checkpoint": sign_checkpoint(builder.checkpoint(), LEDGER_SEED)}
    files = {**dict(builder.files()), **checkpoint, **lists}
    audit = time.process_time()
    result = verify_ledger(files.get, VERIFIER)
    audited = time.process_time()
    assert result.verified, result.problems
    charges = asyncio.run(recovered(files))
    ended = time.process_time()
    assert charges == 1, charges
    return {
        "record_bytes": len(record),
        "list_bytes": len(next(iter(lists.values()), b"")),
        "write_s": (written - began) / releases,
        "audit_s": (audited - audit) / releases,
        "recover_s": (ended - audited) / releases,
    }


async def recovered(files: dict[str, bytes]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder), open_storage_key(Path(folder)))
        watch = LedgerWatch(Files(files), journal, VERIFIER, identity=DEVICE_SEED)  # type: ignore[arg-type]
        account = DeviceAccount(journal, 1e-5)
        return (await recover(watch, account, identity_public_key(DEVICE_SEED))).added


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--releases", type=int, default=20)
    options = parser.parse_args()
    print(json.dumps(measure(options.devices, options.releases)))


if __name__ == "__main__":
    main()
