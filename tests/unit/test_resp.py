"""The client of the store that several hosts share, against a store of the tests that speaks RESP."""

import os
import select
import time
from collections.abc import Callable, Iterator

import pytest

from dopd.engine.vllm import resp
from dopd.engine.vllm.resp import RespClient, answers, place
from dopd.errors import ConfigError
from tests.resp_server import RespServer

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def server() -> Iterator[RespServer]:
    with RespServer() as running:
        yield running


@pytest.fixture
def client(server: RespServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[RespClient]:
    monkeypatch.setattr(resp, "TIMEOUT_S", 0.2)
    monkeypatch.setattr(resp, "RETRY_S", 0.05)
    made = RespClient(server.host, server.port)
    yield made
    made.close()


def outcome(client: RespClient, submit: Callable[..., int], *given: object) -> tuple[bool, list[bool] | None]:
    number = submit(*given)
    assert select.select([client.event_fd()], [], [], 10.0)[0]
    [(completed, well, error, found)] = client.drain_completions()
    assert completed == number and well == (not error)
    return well, found


def test_what_was_stored_is_found_fetched_and_deleted(client: RespClient) -> None:
    data = [os.urandom(200_000), b"\r\n" * 10]
    assert outcome(client, client.submit_batch_set, ["a", "b"], [memoryview(x) for x in data]) == (True, [True, True])
    assert outcome(client, client.submit_batch_exists, ["a", "c", "b"]) == (True, [True, False, True])
    buffers = [bytearray(200_000), bytearray(5), bytearray(20)]
    fetched = outcome(client, client.submit_batch_get, ["a", "c", "b"], [memoryview(x) for x in buffers])
    assert fetched == (True, [True, False, True])
    assert [buffers[0], buffers[2]] == data
    assert outcome(client, client.submit_batch_delete, ["a", "c"]) == (True, [True, False])
    assert outcome(client, client.submit_batch_exists, ["a", "b"]) == (True, [False, True])


def test_many_batches_at_once_each_complete_with_their_number(client: RespClient) -> None:
    numbers = [client.submit_batch_set([f"k{n}"], [memoryview(b"%d" % n)]) for n in range(200)]
    done: list[int] = []
    end_s = time.monotonic() + 10.0
    while len(done) < 200 and time.monotonic() < end_s:
        select.select([client.event_fd()], [], [], 1.0)
        done += [number for number, well, _, _ in client.drain_completions() if well]
    assert sorted(done) == numbers
    assert client.drain_completions() == []


def test_a_value_of_another_length_than_expected_is_an_error_and_the_next_batch_is_right(client: RespClient) -> None:
    outcome(client, client.submit_batch_set, ["a"], [memoryview(b"12345")])
    assert outcome(client, client.submit_batch_get, ["a"], [memoryview(bytearray(4))]) == (False, None)
    until_well(client)
    buffer = bytearray(5)
    assert outcome(client, client.submit_batch_get, ["a"], [memoryview(buffer)]) == (True, [True])
    assert buffer == b"12345"


def until_well(client: RespClient) -> None:
    end_s = time.monotonic() + 10.0
    while not outcome(client, client.submit_batch_exists, ["a"])[0]:
        assert time.monotonic() < end_s
        time.sleep(0.02)


def test_a_store_that_dies_fails_what_is_asked_and_is_used_again_when_it_is_back(
    client: RespClient, server: RespServer
) -> None:
    until_well(client)
    server.stop()
    assert outcome(client, client.submit_batch_exists, ["a"]) == (False, None)
    assert outcome(client, client.submit_batch_set, ["a"], [memoryview(b"1")]) == (False, None)
    server.start()
    until_well(client)


def test_a_store_that_says_nothing_fails_what_is_asked_and_is_used_again_when_it_speaks(
    client: RespClient, server: RespServer
) -> None:
    until_well(client)
    server.silent = True
    assert outcome(client, client.submit_batch_exists, ["a"]) == (False, None)
    server.silent = False
    until_well(client)


async def test_a_worker_asks_whether_the_store_answers(server: RespServer) -> None:
    assert await answers(server.host, server.port)
    server.silent = True
    assert not await answers(server.host, server.port, timeout_s=0.1)
    server.stop()
    assert not await answers(server.host, server.port)


def test_the_address_is_a_host_and_a_port() -> None:
    assert place("redis://store:6379") == ("store", 6379)
    for wrong in (
        "store:6379",
        "redis://store",
        "http://store:1",
        "redis://me:it@store:1",
        "redis://s:1/2",
        "redis://s:x",
    ):
        with pytest.raises(ConfigError, match=r"engine\.kv_shared"):
            place(wrong)
