"""The key set (RFC 7517) that tokens are verified with: from a file or a URL, kept fresh."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

import httpx
import structlog

from gateway.access.tokens import SOONEST_S, JwtVerifier

MAX_JWKS_BYTES = 1024 * 1024
FETCH_S = 10.0

log = structlog.get_logger()


class Jwks:
    """Fetches the key set of a verifier, now and then; keeps the last good one."""

    def __init__(self, verifier: JwtVerifier) -> None:
        self._verifier, self._config = verifier, verifier.config
        self._down = False

    async def run(self) -> None:
        """Fetch at once, every `refresh_s`, and sooner for an unknown key; until cancelled."""
        while True:
            await self.refresh()
            patience_s = SOONEST_S if self._down else self._config.refresh_s
            await asyncio.sleep(min(SOONEST_S, patience_s))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, patience_s - SOONEST_S)):
                    await self._verifier.wanted.wait()

    async def refresh(self) -> None:
        """Fetch the keys once; a source that is down or broken changes nothing."""
        try:
            async with asyncio.timeout(FETCH_S):
                content = await self._read()
            self._verifier.take(json.loads(content))
        except (OSError, httpx.HTTPError, httpx.InvalidURL, ValueError, RecursionError) as error:
            if not self._down:
                log.warning("jwks_away", source=self._source(), reason=type(error).__name__)
            self._down = True
        else:
            if self._down:
                log.info("jwks_back", source=self._source())
            self._down = False

    def _source(self) -> str:
        """The source without what may be a secret in it."""
        return self._config.jwks.partition("?")[0].rpartition("@")[2]

    async def _read(self) -> bytes:
        if not self._config.jwks.startswith(("http://", "https://")):
            return await asyncio.to_thread(_read_file, Path(self._config.jwks))
        async with (
            httpx.AsyncClient(timeout=FETCH_S) as client,
            client.stream("GET", self._config.jwks) as answer,
        ):
            answer.raise_for_status()
            content = b""
            async for piece in answer.aiter_bytes():
                content += piece
                if len(content) > MAX_JWKS_BYTES:
                    raise ValueError("the key set is too long")
            return content


def _read_file(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(MAX_JWKS_BYTES + 1)
    if len(content) > MAX_JWKS_BYTES:
        raise ValueError("the key set is too long")
    return content
