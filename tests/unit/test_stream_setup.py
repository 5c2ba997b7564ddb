"""Two that create one stream at once: the second tries again and takes what is there, other errors are told."""

import pytest
from nats.js.errors import BadRequestError

from dopd.ledger.jetstream import _unless_beaten


def refusing(err_code: int, times: int) -> tuple[list[int], object]:
    calls: list[int] = []

    async def create() -> str:
        calls.append(err_code)
        if len(calls) <= times:
            raise BadRequestError(code=400, err_code=err_code, description="no")
        return "made"

    return calls, create


@pytest.mark.parametrize("err_code", [10058, 10065])
async def test_who_was_beaten_to_a_stream_tries_again(err_code: int) -> None:
    calls, create = refusing(err_code, times=2)
    assert await _unless_beaten(create, "log") == "made"  # type: ignore[arg-type]
    assert len(calls) == 3


async def test_a_stream_that_stays_otherwise_is_used_as_it_is() -> None:
    calls, create = refusing(10058, times=1000)
    assert await _unless_beaten(create, "log") is None  # type: ignore[arg-type]
    assert len(calls) < 1000


async def test_any_other_refusal_is_told() -> None:
    calls, create = refusing(10052, times=1)
    with pytest.raises(BadRequestError):
        await _unless_beaten(create, "log")  # type: ignore[arg-type]
    assert len(calls) == 1
