"""Names of devices in logs: those of a day, of one service."""

from __future__ import annotations

from aggregator.pseudonyms import Pseudonyms
from secagg.secret import Secret

DAY_S = 86_400


def test_a_device_has_one_name_a_day_that_only_its_service_can_make() -> None:
    now = [0.0]
    names = Pseudonyms(Secret(b"k" * 32), lambda: now[0])
    replica = Pseudonyms(Secret(b"k" * 32), lambda: now[0])
    other = Pseudonyms(Secret(b"l" * 32), lambda: now[0])
    first = names.device(b"a" * 32)
    assert first == replica.device(b"a" * 32)
    assert len({first, names.device(b"b" * 32), other.device(b"a" * 32)}) == 3
    now[0] = DAY_S - 1
    assert names.device(b"a" * 32) == first
    now[0] = DAY_S
    assert names.device(b"a" * 32) != first
    token = names.operator("right")
    assert token == names.operator("right") != names.operator("wrong")
    names.operator("\udcff")  # bytes of a head that are no UTF-8
