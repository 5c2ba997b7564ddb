"""What the gateway answers when nothing, or not enough, serves: each with its status and the time to come back.

An emulated cluster in virtual time, asked over HTTP.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from dopd.config import Config, GatewayConfig, WorkerConfig
from dopd.engine.sim.tokens import VOCABULARY
from dopd.policy.simple import SIMPLE
from dopd.runtime.virtual import VirtualRuntime, run_virtual
from dopd.slo import Slo
from dopd_gateway.api import TextGateway
from dopd_gateway.http import create_app
from dopd_gateway.number_tokenizer import NumberTokenizer
from dopd_loadgen.cluster import LocalCluster

BODY: dict[str, Any] = {"model": "sim", "prompt": [5, 6, 7], "max_tokens": 20, "temperature": 0}
CONFIG = Config(gateway=GatewayConfig(max_waiting=2), worker=WorkerConfig(max_requests=1, stall_s=3600.0))


def serving(test: Callable[[httpx.AsyncClient, LocalCluster], Awaitable[None]], slo: Slo | None = None) -> None:
    async def main() -> None:
        runtime = VirtualRuntime(0)
        cluster = LocalCluster(runtime, CONFIG, policy=SIMPLE, latency_s=2e-4)
        await cluster.start()
        api = TextGateway(cluster.gateway, NumberTokenizer(VOCABULARY), runtime, slo or Slo(), 60.0)
        await asyncio.sleep(1.0)
        transport = httpx.ASGITransport(app=create_app(api, 1 << 20))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway", timeout=None) as client:
            await test(client, cluster)
        await cluster.stop()

    run_virtual(main())


def test_without_a_worker_it_is_503_and_served_again_with_one() -> None:
    async def test(client: httpx.AsyncClient, cluster: LocalCluster) -> None:
        for worker_id in list(cluster.workers):
            cluster.kill_worker(worker_id)
        await asyncio.sleep(2 * CONFIG.worker.lease_s)
        for path, body in (("/v1/completions", BODY), ("/v1/chat/completions", {**BODY, "prompt": None})):
            body = body | ({"messages": [{"role": "user", "content": "x"}]} if "chat" in path else {})
            answer = await client.post(path, json=body)
            assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
            assert answer.json()["error"]["code"] == "unavailable"
        assert (await client.get("/ready")).status_code == 503 and (await client.get("/health")).status_code == 200
        await cluster.add_worker("w1", "prefill")
        await asyncio.sleep(1.0)
        assert (await client.post("/v1/completions", json=BODY)).status_code == 200

    serving(test)


def test_at_its_deadline_a_request_is_504_and_gone() -> None:
    async def test(client: httpx.AsyncClient, cluster: LocalCluster) -> None:
        for engine in cluster.engines.values():
            engine.stall(30.0)
        answer = await client.post("/v1/completions", json=BODY, headers={"x-request-timeout-ms": "500"})
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "deadline_exceeded"
        await asyncio.sleep(1.0)
        assert not cluster.gateway._requests and not any(worker._held for worker in cluster.workers.values())

    serving(test)


def test_a_full_queue_is_429_until_there_is_room() -> None:
    async def test(client: httpx.AsyncClient, cluster: LocalCluster) -> None:
        for engine in cluster.engines.values():
            engine.stall(5.0)
        answers = await asyncio.gather(*(client.post("/v1/completions", json=BODY) for _ in range(20)))
        refused = [answer for answer in answers if answer.status_code != 200]
        assert 10 < len(refused) < 20  # what the workers take, and two in the queue
        for answer in refused:
            assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
            assert answer.json()["error"] == {
                "message": "2 requests wait already", "type": "rate_limit_error", "param": None,
                "code": "rate_limit_exceeded",
            }  # fmt: skip
        assert (await client.post("/v1/completions", json=BODY)).status_code == 200

    serving(test)


def test_a_request_has_the_targets_of_its_headers_and_else_those_of_the_cluster() -> None:
    async def test(client: httpx.AsyncClient, cluster: LocalCluster) -> None:
        seen: list[Slo] = []
        taken = cluster.gateway.open

        def look(inbound: Any) -> Any:
            seen.append(inbound.slo)
            return taken(inbound)

        cluster.gateway.open = look  # type: ignore[method-assign]
        await client.post("/v1/completions", json=BODY, headers={"x-slo-ttft-ms": "150"})
        await client.post("/v1/completions", json=BODY, headers={"x-slo-tpot-ms": "7.5"})
        await client.post("/v1/completions", json=BODY)
        assert seen == [Slo(0.15, 0.05), Slo(1.0, 0.0075), Slo(1.0, 0.05)]

    serving(test, Slo(1.0, 0.05))
