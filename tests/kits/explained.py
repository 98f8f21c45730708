"""What taking part means, of a manifest and an account, as if an aggregator had offered it."""

from __future__ import annotations

from typing import Any

from client_sdk.accounts.device_account import DeviceAccount
from client_sdk.explanation import Explanation, explanation
from client_sdk.policy import PrivacyPolicy
from secagg.http_api import ModelVersion, Offer
from secagg.manifest import Manifest
from tests.kits.device import PARTNER, digest_of

POLICY = PrivacyPolicy(min_cohort=4)


def explained(
    manifest: Manifest,
    account: DeviceAccount,
    policy: PrivacyPolicy = POLICY,
    memory_bytes: int | None = None,
    **offered: Any,
) -> Explanation:
    model = ModelVersion(version=3, digest=bytes(32), size_bytes=4_321_000, opened_at=0.0)
    fields = {
        "manifest": b"",
        "manifest_signature": b"",
        "state": "open",
        "releases": 2,
        "model": model,
        "now": 0.0,
    }
    return explanation(
        manifest,
        digest_of(manifest),
        Offer(**{**fields, **offered}),
        account=account,
        policy=policy,
        memory_bytes=memory_bytes,
        refusals=policy.refusals(manifest, own_partner=PARTNER.key, account=account),
    )
