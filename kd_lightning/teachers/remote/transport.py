"""One exchange over HTTP: sent, answered and read whole before a deadline of our own.

The client is aiohttp: maintained, with pools and TLS, and the quickest of them on short requests.
Its timers (like every client's) run between two reads, so a peer that drips holds them for ever:
the deadline here is around all of it.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kd_lightning.errors import KDError
from kd_lightning.teachers.generator import GeneratorError
from kd_lightning.teachers.remote.failures import ExchangeError, RequestError

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

HOME = frozenset({"localhost", "127.0.0.1", "::1"})
"""Hosts that are this machine: what is said to them crosses no network."""


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        """The body as an object."""
        try:
            told = json.loads(self.body)
        except (ValueError, RecursionError):
            raise ExchangeError("the answer is not JSON") from None
        if not isinstance(told, dict):
            raise ExchangeError("the answer is not a JSON object")
        return told


def checked_url(url: str, key: bool, allow_plain_http: bool) -> str:
    """The address without a slash at its end; never told where it may hold a secret."""
    try:
        parts = urlsplit(url)
        home = parts.hostname in HOME
        parts.port  # noqa: B018 (raises where it is no number)
    except ValueError:
        raise KDError("url is no address: write one like http://127.0.0.1:8000/v1") from None
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise KDError(
            "url must be an address alone, without user, password, `?` or `#`: keys come from an "
            "environment variable, whose name stands in key_variable"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise KDError("url must begin with http:// or https://, like http://127.0.0.1:8000/v1")
    if key and parts.scheme == "http" and not home and not allow_plain_http:
        raise KDError(
            f"a key would go to {parts.hostname} in the clear: write https://, or set "
            "allow_plain_http where the network between is your own"
        )
    return url.rstrip("/")


def checked_variable(name: str | None) -> str | None:
    """The name of an environment variable; never told back, as it may be the key itself."""
    if name is not None and not re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", name):
        raise KDError(
            "key_variable must be the name of an environment variable in capitals, like "
            "OPENAI_API_KEY, and not a key"
        )
    return name


class Transport:
    """A pool of connections to one server."""

    def __init__(
        self, url: str, key_variable: str | None, connect_seconds: float, max_bytes: int
    ) -> None:
        """`url` and `key_variable` are checked ones."""
        self.url = url
        self.key_variable = key_variable
        self.connect_seconds = connect_seconds
        self.max_bytes = max_bytes
        self._key = key_of(key_variable)
        self._session: ClientSession | None = None

    def __repr__(self) -> str:
        return f"Transport({self.url})"

    async def open(self) -> None:
        """Make the pool, on the running loop."""
        try:
            import aiohttp
        except ImportError:
            raise KDError("ServerTeacher needs: pip install 'kd-lightning[server]'") from None
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        self._session = aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
            timeout=aiohttp.ClientTimeout(total=None, connect=self.connect_seconds),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # nothing small becomes large
        )

    async def close(self) -> None:
        """Let go of the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def exchange(self, path: str, body: bytes | None, seconds: float) -> Answer:
        """POST a body (None: GET) and read the whole answer within so many seconds."""
        from aiohttp import ClientConnectorError, ClientError, ConnectionTimeoutError

        assert self._session is not None, "open first"
        method = "GET" if body is None else "POST"
        try:
            async with (
                asyncio.timeout(seconds),
                self._session.request(
                    method, self.url + path, data=body, allow_redirects=False
                ) as response,
            ):
                read = await self._read(response)
                return Answer(response.status, response.headers, self._kept_out(read))
        except ConnectionTimeoutError:
            why = f"no connection within {self.connect_seconds:g} s"
            raise ExchangeError(why, reached=False) from None
        except TimeoutError:
            raise ExchangeError(f"no whole answer within {seconds:g} s") from None
        except ClientConnectorError as error:
            told = str(error).replace(" ssl:default", "")  # said of plain http as well
            raise ExchangeError(self.clean(told), reached=False) from None
        except (ClientError, OSError) as error:
            told = self.clean(str(error)) or type(error).__name__
            raise ExchangeError(f"the connection broke ({told})") from None

    async def _read(self, response: ClientResponse) -> bytes:
        if (response.content_length or 0) > self.max_bytes:
            raise self._too_long()
        if response.content_length is not None:
            return await response.read()
        parts, size = [], 0
        async for part in response.content.iter_any():
            parts.append(part)
            size += len(part)
            if size > self.max_bytes:
                raise self._too_long()
        return b"".join(parts)

    def _too_long(self) -> RequestError:
        return RequestError(f"the answer is longer than max_bytes = {self.max_bytes}")

    def _kept_out(self, body: bytes) -> bytes:
        """Without the key, should a server send it back: answers are written down."""
        key = self._key.encode()
        return body.replace(key, f"<{self.key_variable}>".encode()) if key else body

    def clean(self, text: str) -> str:
        """A server's own words, shortened, without the key that it may have sent back."""
        if self._key:
            text = text.replace(self._key, f"<{self.key_variable}>")
        return " ".join(text.split())[:300]


def key_of(variable: str | None) -> str:
    """The key that an environment variable holds; '' where none is named."""
    if variable is None:
        return ""
    key = os.environ.get(variable, "")
    if not key:
        raise GeneratorError(f"the environment has no {variable}: export the server's key as it")
    if not re.fullmatch(r"[!-~]+", key):
        raise GeneratorError(f"{variable} holds a blank or a sign that no key has: export it anew")
    return key
