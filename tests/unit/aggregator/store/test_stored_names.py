"""Counts that Python calls ``masking_set_size`` are stored under their names of before."""

from __future__ import annotations

import msgspec

from aggregator.store.schema import releases
from client_sdk.state.journal import SessionRecord
from dp.report import ReleaseRow


def _stored(kind: type[msgspec.Struct], name: str) -> str:
    return next(f.encode_name for f in msgspec.structs.fields(kind) if f.name == name)


def test_the_size_of_a_masking_set_is_stored_as_it_was() -> None:
    assert _stored(SessionRecord, "masking_set_size") == "masking_set"
    assert _stored(ReleaseRow, "masking_set_size") == "masking_set"
    assert releases.c.masking_set_size.name == "masking_set"
