"""The documents say what the code does, and point to what is there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from docs import metrics, reasons, settings, states
from secagg import limits, masks, messages, ring
from secagg.context import masking_set_digest, pair_seed, pseudonym
from secagg.hashing import digest, encode_parts
from secagg.secret import Secret

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()
# ADRs tell of their day and may name what has gone since.
CURRENT = [page for page in PAGES if page.parent.name != "adr"]


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@cache
def declared_in(path: Path) -> frozenset[str]:
    """``test_x`` and ``TestY::test_x`` of a test file."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            functions = [n for n in node.body if isinstance(n, ast.FunctionDef)]
            found |= {f"{node.name}::{function.name}" for function in functions}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
    return frozenset(found)


def test_states_page_is_what_the_table_generates() -> None:
    page = ROOT / "docs" / "states.md"
    assert page.read_text() == states.page() + "\n", "python -m docs.states > docs/states.md"


def test_the_page_of_reasons_is_that_of_the_code() -> None:
    page = (ROOT / "docs" / "reasons.md").read_text()
    assert page == reasons.page(), "python -m docs.reasons > docs/reasons.md"
    assert all(f"`{reason}`" in page for reason in ("tls-expired", "replicas-running"))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)", text):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{named(page)} links to {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{named(page)} links to {target}"


def test_every_page_is_reached_from_the_readme() -> None:
    found, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page.is_dir():
            waiting += page.glob("*.md")
        elif page.suffix == ".md" and page not in found:
            found.add(page)
            links = re.findall(r"\]\(([\w./-]+)", page.read_text())
            waiting += [(page.parent / link).resolve() for link in links]
    assert set(PAGES) - found == set()


@pytest.mark.parametrize("page", CURRENT, ids=named)
def test_named_files_and_tests_exist(page: Path) -> None:
    floors = "secagg|dp|client_sdk|aggregator|secagg_cli|tests|docs|benchmarks|examples|deploy"
    pattern = rf"`((?:{floors})/[\w/.-]+\.(?:py|md))((?:::\w+)*)`"
    for name, test in re.findall(pattern, page.read_text()):
        assert (ROOT / name).is_file(), f"{named(page)} names {name}"
        if test:
            assert test[2:] in declared_in(ROOT / name), f"{named(page)} names {name}{test}"


def test_every_claim_of_the_threat_model_names_a_test() -> None:
    text = (ROOT / "threat_model.md").read_text().split("## Claims")[1].split("\n## ")[0]
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    assert rows
    for row in rows:
        assert re.search(r"`tests/[\w/]+\.py", row), row


def test_each_of_the_twelve_pitfalls_has_its_severity_and_its_tests() -> None:
    text = (ROOT / "docs" / "privacy.md").read_text()
    answers = re.split(r"\n(?=\*\*\d+\. )", text.split("## Twelve pitfalls")[1].split("\n## ")[0])
    assert len(answers) == 1 + 12
    for number, answer in enumerate(answers[1:], 1):
        assert re.match(
            rf"\*\*{number}\. [^*]+\*\* \((critical|theoretical|negligible)\b", answer
        ), answer
        assert len(re.findall(r"`tests/[\w/]+\.py", answer.split("\nTests: ")[1])) >= 2


@pytest.mark.parametrize("kind", messages.KINDS, ids=lambda kind: kind.__name__)
def test_protocol_page_lists_every_message_as_it_is(kind: type[messages.Message]) -> None:
    number, cap = messages.KINDS[kind]
    fields = ", ".join(kind.__struct_fields__)
    row = rf"^\| {number} \| `{kind.__name__}` \| \w+ \| {re.escape(fields)} \| {cap} \|$"
    assert re.search(row, PROTOCOL, re.MULTILINE), (number, kind.__name__, fields, cap)


def test_protocol_page_states_the_limits() -> None:
    text = " ".join(PROTOCOL.split())
    for said in (
        limits.SUITE,
        f"`slice_length` = {limits.SLICE_LENGTH:,}",
        f"at most {limits.COMPLETE_GRAPH_MAX} or at most `degree` + 1",
        f"{limits.RING_BITS_MIN} <= b <= {limits.RING_BITS_MAX}",
        f"keys have {limits.KEM_PUBLIC_KEY_BYTES:,} bytes",
        f"{limits.SEAL_OVERHEAD_BYTES:,} bytes more than the plaintext",
        f"{limits.SHARE_BYTES} bytes little-endian",
        f"at most {limits.CLOCK_SKEW_S} s ago",
    ):
        assert said in text, said


def test_check_values_of_the_protocol_page_hold() -> None:
    secret, ctx = Secret(bytes(range(32))), bytes([1]) * 32
    salt = masking_set_digest(ctx, [0, 2, 3])
    key = masks.mask_key(secret, salt)
    lanes = np.zeros(4, ring.lane_dtype(20))
    masks.apply_masks(lanes, [masks.MaskTerm(key, 1)], 20)
    values = [
        encode_parts("mask").hex(),
        digest("manifest", b"abc").hex(),
        pair_seed(secret, ctx, bytes([2]) * 32, bytes([3]) * 32).reveal().hex(),
        salt.hex(),
        key.reveal().hex(),
        " ".join(map(str, lanes.tolist())),
        ring.pack(lanes, 20).hex(),
        messages.encode(messages.Ready(ctx, 5, pseudonym(secret, ctx))).hex(),
    ]
    rows = PROTOCOL.split("## Check values")[1].split("\n## ")[0]
    assert re.findall(r"\| `([0-9a-f ]+)` \|$", rows, re.MULTILINE) == values


def test_the_page_of_metrics_is_that_of_the_registry() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == metrics.page(), (
        "python -m docs.metrics > docs/metrics.md"
    )


def test_the_page_of_settings_is_that_of_the_declarations() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == settings.page(), (
        "python -m docs.settings > docs/settings.md"
    )


def test_metrics_have_the_names_that_the_docs_say() -> None:
    from aggregator.metrics import Metrics

    shown = set(re.findall(r"^# TYPE (\S+)", Metrics().render().decode(), re.MULTILINE))
    texts = [*(ROOT / "docs").rglob("*.md"), ROOT / "threat_model.md", ROOT / "CHANGELOG.md"]
    named = {name for path in texts for name in re.findall(r"\bsecagg_[a-z_]+\b", path.read_text())}
    assert named - shown - {"secagg_cli"} == set()
    assert "secagg_strikes_total" in named
