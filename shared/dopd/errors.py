"""The tree of errors. One that crosses processes becomes a `Failure` with the same fields.

DopdError
├─ ConfigError              a config file or environment key; names file, key and fix
├─ RequestError             ends one request; code, status, param, retryable
│  ├─ BadRequest            400
│  ├─ Unauthorized          401
│  ├─ UnknownModel          404
│  ├─ PayloadTooLarge       413, with both byte counts
│  ├─ TooManyRequests       429, retryable
│  ├─ Unavailable           503, retryable
│  └─ DeadlineExceeded      504, retryable
├─ BusError
│  ├─ BrokerRefuses         the broker is there, and does not let us in or do this
│  ├─ NoResponders          nobody listens on the subject
│  ├─ RequestTimeout        a reply did not come in time
│  └─ BusClosed
├─ LedgerError
│  ├─ Conflict              compare-and-set lost
│  └─ LedgerLost            the ledger does not answer
├─ EngineError              the engine cannot start, or died
└─ LoadError                a load run that cannot be made: a trace row, an argument, a target that does not serve
"""

from dopd_proto.request import Failure


class DopdError(Exception):
    """Everything that this project raises on purpose."""


class ConfigError(DopdError):
    """A setting that cannot be used: `where` (file or variable), `key`, and how to mend it."""

    def __init__(self, where: str, key: str, fix: str) -> None:
        super().__init__(f"{where}: {key}: {fix}")
        self.where, self.key, self.fix = where, key, fix


class RequestError(DopdError):
    """Ends one request, over HTTP and NATS with the same fields."""

    code = "internal_error"
    status = 500
    retryable = False
    retry_after_s: float | None = None

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message, self.param = message, param

    def failure(self) -> Failure:
        """The error as a message."""
        return Failure(
            code=self.code, message=self.message, status=self.status, param=self.param, retryable=self.retryable,
            retry_after_s=self.retry_after_s,
        )  # fmt: skip


class BadRequest(RequestError):
    """The request can never succeed as it is."""

    code, status = "invalid_request_error", 400


class Unauthorized(RequestError):
    """No API key, or none that is known."""

    code, status = "invalid_api_key", 401


class UnknownModel(RequestError):
    """This gateway does not serve the model."""

    code, status = "model_not_found", 404


class PayloadTooLarge(RequestError):
    """A message above the broker's limit; the text has both byte counts."""

    code, status = "payload_too_large", 413

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(f"the message has {size_bytes} bytes, the limit is {limit_bytes} bytes")
        self.size_bytes, self.limit_bytes = size_bytes, limit_bytes


class TooManyRequests(RequestError):
    """A limit on the rate or on the queue is reached; after `retry_after_s` it may work."""

    code, status, retryable = "rate_limit_exceeded", 429, True

    def __init__(self, message: str, param: str | None = None, retry_after_s: float = 1.0) -> None:
        super().__init__(message, param)
        self.retry_after_s = retry_after_s


class Unavailable(RequestError):
    """Nothing can serve the request now; sending it again later may work."""

    code, status, retryable, retry_after_s = "unavailable", 503, True, 1.0


class DeadlineExceeded(RequestError):
    """The request's time was up before its last token."""

    code, status, retryable = "deadline_exceeded", 504, True


class BusError(DopdError):
    """Something between processes failed."""


class BrokerRefuses(BusError):
    """The broker is there, and does not let us in, or not do this. To try again is of no use."""


class NoResponders(BusError):
    """Nobody listens on the subject: go elsewhere, now."""


class RequestTimeout(BusError):
    """A reply did not come before its deadline."""


class BusClosed(BusError):
    """The connection was closed or drained."""


class LedgerError(DopdError):
    """The ledger refused or failed."""


class Conflict(LedgerError):
    """Somebody else changed the key first."""


class LedgerLost(LedgerError):
    """The ledger does not answer."""


class EngineError(DopdError):
    """The engine cannot start, or died."""


class LoadError(DopdError):
    """A load run that cannot be made or read; `where` is a file with its row, an argument, or a target."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where, self.reason = where, reason


def error_from(failure: Failure) -> RequestError:
    """The error that a `Failure` stands for: the subclass with its code, or a RequestError with the same fields."""
    error = _KINDS.get(failure.code, RequestError)(failure.message, failure.param)
    # The sender may be newer than we are: its fields hold, not those of our class.
    error.code, error.status, error.retryable = failure.code, failure.status, failure.retryable
    error.retry_after_s = failure.retry_after_s
    return error


class _RemoteTooLarge(PayloadTooLarge):
    """Came in as a Failure: the byte counts are in the text only."""

    def __init__(self, message: str, param: str | None = None) -> None:
        RequestError.__init__(self, message, param)
        counts = [int(word) for word in message.split() if word.isdigit()]
        self.size_bytes, self.limit_bytes = (counts[0], counts[1]) if len(counts) == 2 else (0, 0)


_KINDS: dict[str, type[RequestError]] = {
    kind.code: kind
    for kind in (
        BadRequest,
        Unauthorized,
        UnknownModel,
        _RemoteTooLarge,
        TooManyRequests,
        Unavailable,
        DeadlineExceeded,
    )
}
