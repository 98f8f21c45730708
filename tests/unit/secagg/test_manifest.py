"""A manifest parses strictly, and its digest is over its bytes as sent."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec
import pytest

from secagg import manifest as m
from secagg.errors import RemoteProtocolError
from secagg.hashing import digest
from secagg.limits import MANIFEST_BYTES_MAX, PROTOCOL_VERSION, SUITE

REASONS = {
    "manifest-too-large",
    "manifest-malformed",
    "manifest-not-canonical",
    "manifest-version",
}
MANIFEST = m.Manifest(
    protocol=PROTOCOL_VERSION,
    suite=SUITE,
    task="support-bot",
    created_at=1_800_000_000,
    algorithm="fedavg",
    task_key=b"\x01" * 32,
    ledger_verifier="example.org/ledger+00000000+AAAA",
    partner_keys=(b"\x02" * 32,),
    cohort=m.CohortRules(size_min=5, size_max=10, survivors_min=4, corrupt_max=0, silent_max=1),
    deadlines=m.Deadlines(
        report_s=60.0,
        share_s=10.0,
        check_s=10.0,
        masked_input_s=60.0,
        confirm_s=10.0,
        unmask_s=10.0,
    ),
    segments=(
        m.Segment(name="delta", length=100, clip=1.0, scale=1000, clip_units=1000),
        m.Segment(name="weight", length=1, clip=8.0, scale=1000, clip_units=8000),
    ),
    encoding=m.Encoding(ring_bits=24, slice_length=65536, wrap_log2=-40.0),
    noise=m.Noise(mechanism="skellam", share_variance=12, honest_min=3),
    example_privacy=m.ExamplePrivacy(
        mode="distributed", clip=1.0, noise_multiplier=1.4, sampling_rate=0.25, examples_max=64
    ),
    device_privacy=m.DevicePrivacy(clip=1.0, noise_multiplier=0.5),
    budget=m.Budget(max_epsilon=8.0, delta=1e-5, releases_max=4),
    report_slot_s=0.0,
    base_model=m.BaseModel(name="smollm2", fingerprint=b"\x03" * 32),
    adapter=m.Adapter(
        kind="ffa-lora",
        rank=4,
        alpha=8,
        target_modules=("q_proj", "v_proj"),
        seed=b"\x04" * 32,
        trainable=(m.TensorShape(name="b", rows=10, columns=10),),
        frozen=(),
    ),
    training=m.Training(
        local_steps=2,
        local_learning_rate=1.0,
        batch_size=24,
        proximal_mu=0.0,
        server_optimiser="sgd",
        server_learning_rate=1.0,
        server_momentum=0.0,
        weight_unit=0,
        denominator=10.0,
        max_tokens=64,
        micro_batch=4,
    ),
)


def outcome(use: Callable[[], object]) -> str | None:
    """The stable reason of the refusal, None if accepted; any other exception fails the test."""
    reason = None
    try:
        use()
    except RemoteProtocolError as error:
        reason = error.reason
    assert reason is None or reason in REASONS
    return reason


def plain() -> dict[str, object]:
    """The manifest as nested dicts, to be changed."""
    built = msgspec.msgpack.decode(m.encode_manifest(MANIFEST))
    assert isinstance(built, dict)
    return built


def refusal(changed: object) -> str | None:
    return outcome(lambda: m.decode_manifest(msgspec.msgpack.encode(changed)))


def test_a_manifest_survives_the_wire() -> None:
    assert m.decode_manifest(m.encode_manifest(MANIFEST)) == MANIFEST
    assert refusal(plain()) is None
    assert MANIFEST.data_length == 101


def test_the_digest_is_over_the_bytes_as_sent() -> None:
    encoded = m.encode_manifest(MANIFEST)
    assert m.manifest_digest(encoded) == digest("manifest", encoded)
    old = plain()
    del old["cohort"]["model_min"]  # type: ignore[attr-defined]
    shorter = msgspec.msgpack.encode(old)
    assert m.decode_manifest(shorter) == MANIFEST
    assert m.manifest_digest(shorter) != m.manifest_digest(encoded)


def test_the_same_manifest_has_the_same_bytes() -> None:
    again = m.decode_manifest(m.encode_manifest(MANIFEST))
    assert m.encode_manifest(again) == m.encode_manifest(MANIFEST)


@pytest.mark.parametrize(
    ("field", "value"), [("protocol", 0), ("protocol", 2), ("suite", ""), ("suite", SUITE + "x")]
)
def test_another_protocol_or_suite_is_refused(field: str, value: object) -> None:
    assert refusal({**plain(), field: value}) == "manifest-version"


PARTS = ("cohort", "deadlines", "encoding", "noise", "example_privacy", "budget")
NEUTRAL = (0, (), "", "sgd", msgspec.UNSET)


def later(part: str) -> set[str]:
    """Fields of a part that old manifests lack; each has a neutral default."""
    fields = msgspec.structs.fields(type(getattr(MANIFEST, part)))
    return {field.name for field in fields if not field.required}


def test_unknown_and_missing_fields_are_refused() -> None:
    """A field that one side does not know could weaken what the other side promises."""
    assert refusal({**plain(), "also": 1}) == "manifest-malformed"
    for field in plain():
        missing = {key: value for key, value in plain().items() if key != field}
        assert refusal(missing) == "manifest-malformed"
    for part in (*PARTS, "training"):
        inner = plain()[part]
        assert isinstance(inner, dict)
        assert refusal({**plain(), part: {**inner, "also": 1}}) == "manifest-malformed"
        for field in set(inner) - later(part):
            missing = {key: value for key, value in inner.items() if key != field}
            assert refusal({**plain(), part: missing}) == "manifest-malformed"


def test_fields_that_came_later_are_neutral_where_an_old_manifest_lacks_them() -> None:
    found = {part: later(part) for part in (*PARTS, "training")}
    assert found["cohort"] >= {"degree", "threshold", "versions_back"}
    assert found["training"] >= {"server_beta2", "server_tau", "local_optimiser", "local_epochs"}
    old = dict(plain())
    for part, names in found.items():
        inner = old[part]
        assert isinstance(inner, dict)
        old[part] = {key: value for key, value in inner.items() if key not in names}
    read = m.decode_manifest(msgspec.msgpack.encode(old))
    for part, names in found.items():
        for name in names:
            assert getattr(getattr(read, part), name) in NEUTRAL, (part, name)


def test_fields_of_other_types_are_refused() -> None:
    for field in plain():
        for value in (True, [[1]], {"x": 1}, msgspec.msgpack.Ext(3, b"x")):
            assert refusal({**plain(), field: value}) == "manifest-malformed"


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("noise", "mechanism", "gaussian"),
        ("example_privacy", "mode", "central"),
        ("adapter", "kind", "full"),
        ("encoding", "ring_bits", "24"),
        ("encoding", "ring_bits", 24.5),
        ("cohort", "size_min", None),
    ],
)
def test_values_outside_the_declared_types_are_refused(
    part: str, field: str, value: object
) -> None:
    inner = plain()[part]
    assert isinstance(inner, dict)
    assert refusal({**plain(), part: {**inner, field: value}}) == "manifest-malformed"


def test_a_manifest_has_a_size_cap() -> None:
    big = bytes(MANIFEST_BYTES_MAX + 1)
    assert outcome(lambda: m.decode_manifest(big)) == "manifest-too-large"
    assert outcome(lambda: m.decode_manifest(big[:-1])) == "manifest-malformed"


def test_every_truncation_is_refused() -> None:
    encoded = m.encode_manifest(MANIFEST)
    for size in range(len(encoded)):
        found = outcome(lambda s=size: m.decode_manifest(encoded[:s]))
        assert found == "manifest-malformed"
    assert outcome(lambda: m.decode_manifest(encoded + b"\0")) == "manifest-malformed"


def test_damaged_manifests_parse_or_are_refused() -> None:
    encoded, source = m.encode_manifest(MANIFEST), random.Random(7)
    for _ in range(3_000):
        changed = bytearray(encoded)
        for _ in range(source.randrange(1, 4)):
            at = source.randrange(len(changed))
            if source.random() < 0.5:
                changed[at] = source.randrange(256)
            else:
                changed[at : at + source.randrange(4)] = source.randbytes(source.randrange(6))
        outcome(lambda c=bytes(changed): m.decode_manifest(c))


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"\xc1",
        b"\x91" * 5_000,
        b"\x81\xa1x" * 5_000,
        b"\x81\xa2\xff\xfe\xc0",
        b"\x81\xa4task\xa2\xff\xfe",
        b"\xdf\xff\xff\xff\xff",
        b"\x81\xa8segments\xdd\xff\xff\xff\xff",
        b"\x81\xa8segments" + b"\x91" * 100_000,
    ],
    ids=lambda encoded: encoded[:12].hex(),
)
def test_hostile_messagepack_is_refused(encoded: bytes) -> None:
    assert outcome(lambda: m.decode_manifest(encoded)) == "manifest-malformed"
