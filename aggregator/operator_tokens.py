"""The operators' tokens: that of the settings, and those that replaced it (ADR 45).

The service keeps the SHA-256 of each, never the token. A rotation is in the database, so all
replicas have it within ``poll_s``. After one, the token of the settings counts where the database
does not know it and it was set by hand, so that whoever has lost the rotated one gets in again.
"""

from __future__ import annotations

import hashlib
import hmac

from aggregator.core import Core
from aggregator.errors import conflict
from aggregator.store import operator_tokens
from aggregator.store.database import Conflict


def token_digest(token: str) -> str:
    """SHA-256 of a token, hex."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


class OperatorTokens:
    def __init__(self, core: Core, configured: str, *, by_hand: bool) -> None:
        """
        Args:
            configured: the token of the setting, or of ``operator.token``.
            by_hand: it is the setting's; else this replica drew it.
        """
        self._core = core
        self._configured = token_digest(configured)
        self._by_hand = by_hand
        self._rotated: dict[str, float | None] = {}

    async def load(self) -> None:
        """See rotations by other replicas."""
        async with self._core.database.read() as connection:
            self._rotated = await operator_tokens.all_of(connection)

    def admits(self, token: str) -> bool:
        """Whether an operator may show it now; in constant time for those that are compared."""
        now, shown = self._core.clock(), token_digest(token)
        live = [d for d, until in self._rotated.items() if until is None or now < until]
        if self._configured not in self._rotated and (self._by_hand or not self._rotated):
            live.append(self._configured)
        return any([hmac.compare_digest(shown, digest) for digest in live])

    async def rotate(self, digest: str, overlap_s: float) -> float:
        """Take the token with this digest from now on, and all others for ``overlap_s`` more;
        returns when they end, Unix seconds. The same one again ends the others sooner at most.

        Raises:
            Refusal: ``token-used``: it was rotated out before.
        """
        core = self._core
        now = core.clock()
        until = now + overlap_s
        try:
            async with core.database.write() as connection:
                known = await operator_tokens.all_of(connection)
                if known.get(digest) is not None:
                    raise _used()
                if self._configured not in known:
                    await operator_tokens.insert(connection, self._configured, now)
                if digest not in known and digest != self._configured:
                    await operator_tokens.insert(connection, digest, now)
                await operator_tokens.end_others(connection, digest, until)
                # On PostgreSQL a rotation at the same time may have come between the statements.
                now_known = await operator_tokens.all_of(connection)
                if [d for d, ends in now_known.items() if ends is None] != [digest]:
                    raise Conflict("two tokens without an end")
        except Conflict as error:
            raise conflict(
                "token-rotated", "Another rotation came between.", remedy="Try again."
            ) from error
        await self.load()
        return until


def _used() -> Exception:
    return conflict(
        "token-used",
        "This token was replaced by another before.",
        remedy="Let the command draw a new one: secagg token rotate --out NEW-FILE.",
    )
