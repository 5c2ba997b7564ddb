"""Just enough of an HTTP client for probes and the demo's load: the light installation has no other.

Consumes a URL of plain HTTP/1.1; produces a status with its body, or the lines of a streamed body.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit


class Response:
    """Status, headers, and a body that is read once."""

    def __init__(self, status: int, headers: dict[str, str], reader: asyncio.StreamReader) -> None:
        self.status = status
        self._headers, self._reader = headers, reader

    async def parts(self) -> AsyncIterator[bytes]:
        """The body as it comes in."""
        if self._headers.get("transfer-encoding", "").lower() != "chunked":
            while part := await self._reader.read(65536):
                yield part
            return
        while size := int((await self._reader.readline()).split(b";")[0], 16):
            yield await self._reader.readexactly(size)
            await self._reader.readexactly(2)

    async def lines(self) -> AsyncIterator[bytes]:
        """The body line by line."""
        rest = b""
        async for part in self.parts():
            *whole, rest = (rest + part).split(b"\n")
            for line in whole:
                yield line
        if rest:
            yield rest

    async def body(self) -> bytes:
        """All of it."""
        return b"".join([part async for part in self.parts()])


@asynccontextmanager
async def request(url: str, body: bytes = b"") -> AsyncIterator[Response]:
    """GET, or POST of JSON where there is a body. One connection each. Raises OSError, ValueError, EOFError."""
    to = urlsplit(url)
    reader, writer = await asyncio.open_connection(to.hostname, to.port)
    try:
        head = f"{'POST' if body else 'GET'} {to.path or '/'} HTTP/1.1\r\nHost: {to.netloc}\r\nConnection: close\r\n"
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        writer.write(head.encode() + b"\r\n" + body)
        status = int((await reader.readline()).split(b" ")[1])
        headers = {}
        while line := (await reader.readline()).strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        yield Response(status, headers, reader)
    finally:
        writer.close()


async def get(url: str, timeout_s: float = 2.0) -> tuple[int, bytes]:
    """Status and body; status 0 when there was no answer."""
    try:
        async with asyncio.timeout(timeout_s), request(url) as response:
            return response.status, await response.body()
    except (OSError, ValueError, IndexError, EOFError, TimeoutError):
        return 0, b""
