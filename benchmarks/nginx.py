"""nginx by ``deploy/nginx.conf`` in front of replicas on this machine, with TLS of its own.

``deploy/nginx.conf`` keeps its words; the addresses of the replicas, the port, the certificate and
the places of temporary files are put in.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tests.kits.boxes import Authority

CONFIGURATION = Path(__file__).resolve().parent.parent / "deploy" / "nginx.conf"
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def rendered(text: str, backends: Sequence[str], port: int, folder: Path) -> str:
    """``deploy/nginx.conf`` for ``backends`` (host:port), with ``folder/server.pem``.

    Raises:
        ValueError: the file has no such places any more.
    """
    line = re.search(r"^( *)server \S+:8080( [^;]*);\n", text, re.MULTILINE)
    if line is None:
        raise ValueError("no upstream server")
    servers = "".join(f"{line[1]}server {backend}{line[2]};\n" for backend in backends)
    temporary = "".join(f"{name}_temp_path {folder}/{name}; " for name in _TEMPORARY)
    places = (
        (r"(^ *server \S+:8080 [^;]*;\n)+", servers),
        (r"listen 443 ", f"listen 127.0.0.1:{port} "),
        (r"ssl_certificate +\S+;", f"ssl_certificate {folder}/server.pem;"),
        (r"ssl_certificate_key +\S+;", f"ssl_certificate_key {folder}/server.pem;"),
        (
            r"^http \{\n",
            "http {\nlog_format statuses '$status $request_method $upstream_addr';\n"
            f"access_log {folder}/access.log statuses;\n{temporary}\n",
        ),
    )
    for pattern, new in places:
        text, found = re.subn(pattern, lambda _, new=new: new, text, flags=re.MULTILINE)
        if found != 1:
            raise ValueError(f"{pattern} is there {found} times")
    return f"daemon off;\npid {folder}/pid;\nerror_log {folder}/error.log;\n{text}"


class Nginx:
    """As :class:`tests.kits.round_robin.RoundRobin`. ``ca_file``: whom its clients trust."""

    def __init__(self, command: str, backends: Sequence[str], folder: Path) -> None:
        folder.mkdir()
        self._command = command
        self._folder = folder
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            self._port = held.getsockname()[1]
        self.url = f"https://127.0.0.1:{self._port}"
        authority = Authority(folder)
        authority.server("127.0.0.1")
        self.ca_file = authority.ca_file
        addresses = [urlsplit(backend).netloc for backend in backends]
        text = rendered(CONFIGURATION.read_text(), addresses, self._port, folder)
        (folder / "nginx.conf").write_text(text)

    @property
    def statuses(self) -> Counter[int]:
        lines = (self._folder / "access.log").read_text().splitlines()
        return Counter(int(line.split()[0]) for line in lines)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Nginx]:
        process = await asyncio.create_subprocess_exec(
            self._command, "-p", self._folder, "-c", self._folder / "nginx.conf"
        )
        try:
            for _ in range(100):
                try:
                    socket.create_connection(("127.0.0.1", self._port)).close()
                    break
                except OSError:
                    await asyncio.sleep(0.05)
            yield self
        finally:
            process.terminate()
            await process.wait()
