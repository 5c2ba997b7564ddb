"""Server-sent events out of raw bytes, however they were cut. Pure.

Consumes chunks of an HTTP body as they come in; produces the data of each event that is complete.
"""

from collections.abc import Sequence

_PREFIX = b"data: "
_BETWEEN = b"\n\n" + _PREFIX
_BOM = b"\xef\xbb\xbf"


class EventSplitter:
    """One stream's events. Fields other than `data`, and comments, are dropped (WHATWG HTML, 9.2.6)."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._after_cr = False
        self._begun = False

    @property
    def unfinished(self) -> bool:
        """Whether an event has begun that is not complete; at the end of a stream it is lost."""
        return bool(self._rest or self._data)

    def feed(self, chunk: bytes) -> Sequence[bytes]:
        """Data of the events that this chunk completes; lines of one event are joined by a newline."""
        # What nearly every server sends: whole events of one line each. A newline inside would make one more.
        if chunk.startswith(_PREFIX) and chunk.endswith(b"\n\n") and not self.unfinished and b"\r" not in chunk:
            events = chunk[len(_PREFIX) : -2].split(_BETWEEN)
            if chunk.count(b"\n") == 2 * len(events):
                self._begun, self._after_cr = True, False
                return events
        return self._slow(chunk)

    def _slow(self, chunk: bytes) -> list[bytes]:
        *lines, self._rest = (self._rest + self._unified(chunk)).split(b"\n")
        events = []
        for line in lines:
            if not self._begun:
                self._begun, line = True, line.removeprefix(_BOM)
            if line:
                self._line(line)
            elif self._data:
                events.append(b"\n".join(self._data))
                self._data.clear()
        return events

    def _unified(self, chunk: bytes) -> bytes:
        """A line may end with LF, CR LF or CR; of a CR LF the LF may come with the next chunk."""
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
            self._after_cr = False
        if b"\r" not in chunk:
            self._after_cr = self._after_cr and not chunk
            return chunk
        self._after_cr = chunk.endswith(b"\r")
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _line(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
