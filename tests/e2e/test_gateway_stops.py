"""A gateway that is asked to stop lets what runs come to its end, over HTTP as over NATS."""

import signal
from pathlib import Path

import pytest

from tests.e2e.live import demo, live

pytestmark = [pytest.mark.nats, pytest.mark.slow]


async def test_streams_that_run_when_a_gateway_is_asked_to_stop_come_to_their_end(tmp_path: Path) -> None:
    with demo(tmp_path, engine__profile="a100-qwen2.5-14b-bf16-tp1", worker__stop_grace_s=60) as up:
        up.wait_for("Ctrl-C stops everything", 60.0)
        async with live(up) as clients:
            asked = [await clients.ask_http(50, 300), await clients.ask(50, 300)]
            await clients.until(lambda: all(one.tokens for one in asked), 20.0, "both stream")
            clients.send("gateway", signal.SIGTERM)
            for one in asked:
                await one.done.wait()
            assert clients.verdict() == [] and not clients.failures()
            assert [one.broken for one in asked] == ["", ""]
