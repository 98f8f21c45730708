"""What a line shows of texts that others made: no secret, and not more than is bounded."""

from __future__ import annotations

import base64
import json
import os
import random
import secrets
import time

import pytest

from aggregator import logs
from aggregator.logs import redaction
from aggregator.logs.redaction import shown
from secagg.errors import ConfigurationError
from tests.kits.log_lines import lines

HIDDEN = "Plan7edSecret"


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql+asyncpg://user:{HIDDEN}@host/db did not answer",
        f"postgresql://user:p@ss/{HIDDEN}@host/db",
        f"(Error) disk full\n[parameters: ('{HIDDEN}', 1)]\n(Background on this error)",
        f"duplicate key value\nDETAIL:  Key (identity)=({HIDDEN}) already exists.",
        f"Authorization: Bearer {HIDDEN}",
        f"password={HIDDEN} host=h",
        f"cannot unpack b'\\x00{HIDDEN}\\'more' here",
        f'cannot unpack b"{HIDDEN}',
        f'{{"operator_token": "{HIDDEN} {HIDDEN}", "name": "n"}}',
        f"{{'sealing_seed': '{HIDDEN}'}}",
        f"AWS_SECRET_ACCESS_KEY={HIDDEN}",
        f"access_key: {HIDDEN}",
        f"[parameters: ('{HIDDEN}', 1",
    ],
)
def test_what_could_be_a_secret_is_not_shown(text: str) -> None:
    assert HIDDEN in text
    assert HIDDEN not in shown(text, 1_000)


def test_keys_and_tokens_are_not_shown_and_digests_are_told_apart() -> None:
    for _ in range(50):
        key, token = os.urandom(32), secrets.token_urlsafe(32)
        text = shown(f"found {key.hex()} and {token}, expected 5", 1_000)
        assert key.hex() not in text
        assert key.hex()[:8] in text
        assert token not in text or not any(c.isdigit() for c in token)
        assert text.endswith("expected 5")
        packed = base64.urlsafe_b64encode(key).decode()
        if any(c.isdigit() for c in packed):  # of 43 characters nearly always
            assert packed[:20] not in shown(packed + "A1a", 1_000)


def test_base64_is_not_shown_where_it_has_slashes() -> None:
    for seed in range(50):
        packed = base64.b64encode(random.Random(seed).randbytes(48)).decode()
        assert shown(f"found {packed}, expected 5", 1_000) == "found <redacted>, expected 5"
    assert "bPxRfi" not in shown("key wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", 600)


@pytest.mark.parametrize(
    "part",
    [
        "://",
        "://a/ ",
        "[parameters: ",
        "\n",
        "\n DETAIL",
        "bearer ",
        "password",
        "password_",
        "secret      ",
        "token=\"'",
        "b'\\",
        "a1",
        "aA1-",
        "a/",
    ],
)
def test_a_text_that_a_caller_chose_is_searched_in_linear_time(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redaction, "_LOOKED_AT", 1 << 17)
    text = part * ((1 << 17) // len(part))
    started = time.process_time()
    shown(text, 600)
    assert time.process_time() - started < 2.0  # quadratic: a minute and more


def test_what_harms_nobody_stays_readable() -> None:
    for text in (
        "(sqlite3.OperationalError) database or disk is full",
        "[Errno 28] No space left on device: '/srv/secagg/Data1/uploads/some/long/name'",
        'File "test_a_failure_is_logged_with_its_cause_and_without_local_variables.py", line 7',
        "password authentication failed for user 'secagg'",
    ):
        assert shown(text, 1_000) == text


def test_a_text_of_any_length_is_bounded_and_keeps_its_beginning_and_its_end() -> None:
    text = shown("begins " + "x" * 5_000_000 + " ends", 600)
    assert len(text) < 620
    assert text.startswith("begins ")
    assert text.endswith(" ends")


def test_a_failure_tells_type_message_reason_and_a_bounded_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure()

    def deeper(left: int) -> None:
        if left:
            deeper(left - 1)
        try:
            raise KeyError("cause " + "y" * 100_000)
        except KeyError as error:
            raise ConfigurationError("no-room", "There is no room.") from error

    try:
        deeper(200)
    except ConfigurationError:
        logs.get_logger("test").exception("failed")
    (line,) = lines(capsys)
    assert line["error"] == "secagg.errors.ConfigurationError"
    assert (line["message"], line["reason"]) == ("There is no room. [no-room]", "no-room")
    assert "Traceback" in line["exception"]
    assert "deeper" in line["exception"]
    assert len(json.dumps(line)) < 10_000
