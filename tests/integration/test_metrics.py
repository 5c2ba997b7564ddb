"""Metrics of a whole emulated cluster in virtual time, against their table; and the operator port itself."""

import asyncio
from collections import Counter
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from dopd.config import ClusterConfig, Config, GatewayConfig, HttpConfig, PolicyConfig
from dopd.engine.sim.store import samples as store_samples
from dopd.engine.sim.tokens import VOCABULARY
from dopd.errors import ConfigError, RequestError
from dopd.obs.metric_table import METRICS, markdown
from dopd.obs.metrics import MOST_VALUES, Metrics, bus_source
from dopd.obs.operator_http import HEAD_BYTES, NotYet, OperatorHttp, Page
from dopd.policy.base import Alternative, Plan
from dopd.runtime.virtual import VirtualRuntime, run_virtual
from dopd.slo import Slo
from dopd.worker import metrics as worker_metrics
from dopd_forecaster import metrics as forecaster_metrics
from dopd_gateway.api import TextGateway
from dopd_gateway.http import create_app
from dopd_gateway.http_connection import Room
from dopd_gateway.http_server import HttpServer
from dopd_gateway.metrics import GatewayMetrics, connections, failures, targets
from dopd_gateway.nats_api import NatsApi
from dopd_gateway.number_tokenizer import NumberTokenizer
from dopd_gateway.stream import Inbound
from dopd_loadgen.cluster import LocalCluster
from dopd_planner.metrics import PlannerMetrics
from dopd_proto.asked import Completion, Generate
from dopd_proto.control import RolesReply, RolesRequest
from dopd_proto.request import Sampling
from dopd_proto.subjects import GENERATE, ROLES

ROOT = Path(__file__).parents[2]
CONFIG = Config(
    cluster=ClusterConfig(prefill=1, decode=2),
    policy=PolicyConfig(name="simple"),
    gateway=GatewayConfig(window_s=10.0),
)
ISL, OSL, REQUESTS = 300, 20, 40
Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Watched:
    """The cluster with the metrics that its processes would have."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster
        self.pages: dict[str, Metrics] = {}
        runtime, gateway, planner = cluster.runtime, cluster.gateway, cluster.planner
        self.gateway = GatewayMetrics(self.of("g1").histogram)
        self.planner = PlannerMetrics(self.of("planner").histogram)
        gateway._on_ended, planner._on_written = self.gateway.ended, self.planner.written
        self.of("g1").add(lambda: self.gateway.samples(gateway))
        self.of("g1").add(lambda: targets(Slo()))
        self.of("store").add(lambda: store_samples(cluster.store))
        self.of("planner").add(lambda: self.planner.samples(planner))
        self.of("forecaster").add(lambda: forecaster_metrics.samples(cluster.forecaster))
        for name, worker in cluster.workers.items():
            self.of(name).add(lambda worker=worker: worker_metrics.samples(worker, runtime.now()))  # type: ignore[misc]

    def of(self, name: str) -> Metrics:
        if name not in self.pages:
            self.pages[name] = Metrics(name)
            bus = self.cluster.buses.get(name)
            if bus is not None:
                self.pages[name].add(bus_source(bus))
        return self.pages[name]

    def values(self, name: str) -> Values:
        families = text_string_to_metric_families(self.of(name).page().decode())
        return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(values: Values, name: str, **labels: str) -> float:
    return values[name, frozenset(labels.items())]


async def ask(cluster: LocalCluster, timeout_s: float = 60.0) -> None:
    sampling = Sampling(max_tokens=OSL, temperature=0.0, ignore_eos=True)
    inbound = Inbound(list(range(3, 3 + ISL)), sampling, Slo(), cluster.runtime.now() + timeout_s)
    async for _ in cluster.gateway.open(inbound):
        pass


async def err(cluster: LocalCluster, metrics: Metrics) -> None:
    """Two wrong requests over HTTP, one over NATS; before them one that ends at a stop string."""
    api = TextGateway(cluster.gateway, NumberTokenizer(VOCABULARY), cluster.runtime, Slo(), 60.0)
    public, app = NatsApi(cluster.broker.connect("api"), api), create_app(api, 1 << 20)
    metrics.add(lambda: failures("nats", public.failures))
    metrics.add(lambda: failures("http", app.state.failures))
    await public.start()
    story = Generate(model="sim", prompt=list(range(3, 3 + ISL)), max_tokens=OSL, temperature=0.0, ignore_eos=True)
    words = (await api.complete(story)).text.split()
    stopped = await api.complete(replace(story, stop=[words[7]]))
    assert stopped.finish_reason == "stop" and stopped.usage.completion_tokens < OSL
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway") as client:
        assert (await client.post("/v1/completions", content=b"{")).status_code == 400
        assert (await client.get("/v1/nothing")).status_code == 404
    with pytest.raises(RequestError):
        ask = Generate(model="another", prompt="x")
        await cluster.broker.connect("client").request(GENERATE.at(), ask, (Completion,), 5.0)
    await public.stop(1.0)


@pytest.fixture(scope="module")
def ran() -> dict[str, Values]:
    """What each process shows after a minute: requests that ended well, one that failed, a role change."""
    shown: dict[str, Values] = {}

    async def main() -> None:
        cluster = LocalCluster(VirtualRuntime(0), CONFIG, latency_s=2e-4)
        await cluster.start()
        watched = Watched(cluster)
        await asyncio.sleep(6.0)  # the planner has heard everybody
        for _ in range(REQUESTS):
            await ask(cluster)
            await asyncio.sleep(1.0)
        with pytest.raises(Exception, match="not finished in time"):
            await ask(cluster, timeout_s=1e-3)
        person = cluster.broker.connect("person")
        await err(cluster, watched.of("g1"))
        wish = RolesRequest(action="set", worker_id="w2", role="prefill", until="drained")
        await person.request(ROLES.at(), wish, (RolesReply,), 20.0)
        with pytest.raises(Exception, match="decode worker"):
            await person.request(
                ROLES.at(), RolesRequest(action="set", worker_id="w3", role="prefill"), (RolesReply,), 20.0
            )
        cluster.buses["g1"].faults.report("slow_consumer", "dopd.v1.x", "a test")
        room = Room(HttpConfig(), 10, open=3, held_bytes=512, refused=Counter(request_timeout=2), cut=1)
        watched.of("g1").add(lambda: connections(room))
        splits = (Alternative(2, 1, 0.99, 0.4, "prefill"), Alternative(1, 2, 0.7, -0.2, "prefill"))
        cluster.planner.planned = Plan({}, reason="grow_prefill", alternatives=splits)  # that policy plans nothing
        cluster.workers["w1"].tally.refused["draining"] += 1
        cluster.forecaster.refused["late"] += 1
        await asyncio.sleep(15.0)
        shown.update({name: watched.values(name) for name in watched.pages})
        await cluster.stop()

    run_virtual(main())
    return shown


def test_every_exported_metric_is_in_the_table_and_every_one_of_the_table_is_exported(ran: dict[str, Values]) -> None:
    suffixes = {"histogram": "_bucket", "summary": "_count"}
    wanted = {metric.name + suffixes.get(metric.kind, ""): metric for metric in METRICS}
    exported = {(name, frozenset(key for key, _ in labels)) for values in ran.values() for name, labels in values}
    extra = {"_sum", "_count", "_created"}
    for name, labels in exported:
        stem = next((name.removesuffix(end) for end in extra if name.endswith(end)), name)
        if name.startswith("dopd_") and not any(m.name == stem and m.kind in suffixes for m in METRICS):
            assert name in wanted, name
            assert labels - {"le"} == set(wanted[name].labels), name
    assert set(wanted) - {name for name, _ in exported} == set()
    assert any(name == "process_resident_memory_bytes" for name, _ in exported)


def test_names_end_in_their_unit_and_counters_in_total() -> None:
    units = ("_seconds", "_requests", "_tokens", "_total", "_workers", "_ratio", "_per_second")
    units += ("_connections", "_bytes")
    flags = ("_up", "_connected", "_leading", "_info", "_role", "_phase")
    for metric in METRICS:
        assert metric.name.endswith(units + flags), metric.name
        assert (metric.kind == "counter") == metric.name.endswith("_total"), metric.name
        assert metric.buckets == tuple(sorted(set(metric.buckets))) and bool(metric.buckets) == (
            metric.kind == "histogram"
        )


def test_the_table_of_the_document_is_that_of_the_code() -> None:
    assert markdown() in (ROOT / "docs/observability.md").read_text()


def test_the_gateway_counts_requests_tokens_and_latencies(ran: dict[str, Values]) -> None:
    shown = ran["g1"]
    assert value(shown, "dopd_requests_total", outcome="length") == REQUESTS + 1
    assert value(shown, "dopd_requests_total", outcome="stop") == 1
    assert value(shown, "dopd_requests_total", outcome="cancelled") == 0
    assert value(shown, "dopd_requests_total", outcome="failed") == 1
    assert value(shown, "dopd_request_failures_total", code="deadline_exceeded") == 1
    assert value(shown, "dopd_requests_within_slo_total") == REQUESTS + 2
    assert value(shown, "dopd_arrivals_total") == REQUESTS + 3
    assert value(shown, "dopd_requests_refused_total") == value(shown, "dopd_slo_missed_total", target="ttft") == 0
    assert value(shown, "dopd_slo_seconds", target="ttft") == Slo().ttft_s
    assert value(shown, "dopd_tokens_total", kind="prompt") == (REQUESTS + 3) * ISL
    assert (REQUESTS + 1) * OSL < value(shown, "dopd_tokens_total", kind="output") <= (REQUESTS + 2) * OSL
    for name in ("dopd_ttft_seconds", "dopd_tpot_seconds"):
        assert value(shown, f"{name}_count") == REQUESTS + 2
        assert 0.0 < value(shown, f"{name}_sum") < REQUESTS
    assert value(shown, "dopd_request_duration_seconds_count") == REQUESTS + 3
    assert value(shown, "dopd_waiting_requests") == value(shown, "dopd_running_requests") == 0
    assert value(shown, "dopd_workers", role="prefill", phase="serving") == 2
    assert value(shown, "dopd_credit_requests", role="decode") > 0
    assert value(shown, "dopd_bus_faults_total", kind="slow_consumer") == 1
    assert value(shown, "dopd_error_answers_total", api="http", code="invalid_request_error") == 1
    assert value(shown, "dopd_error_answers_total", api="http", code="not_found") == 1
    assert value(shown, "dopd_error_answers_total", api="nats", code="model_not_found") == 1


def test_workers_show_what_they_are_and_did(ran: dict[str, Values]) -> None:
    workers = [ran[name] for name in ("w1", "w2", "w3")]
    roles = [role for shown in workers for role in ("prefill", "decode", "mixed")
             if value(shown, "dopd_worker_role", role=role)]  # fmt: skip
    assert roles == ["prefill", "prefill", "decode"]
    assert all(value(shown, "dopd_worker_phase", phase="serving") == 1 for shown in workers)
    assert value(ran["w1"], "dopd_worker_segments_total", end="handed_over") == REQUESTS + 2
    made = sum(value(shown, "dopd_worker_output_tokens_total") for shown in workers)
    assert made >= value(ran["g1"], "dopd_tokens_total", kind="output")
    assert value(ran["w2"], "dopd_worker_role_changes_total") == 1
    for shown in workers[:2]:  # the third had nothing to do
        steps, busy_s = value(shown, "dopd_engine_step_seconds_count"), value(shown, "dopd_engine_step_seconds_sum")
        assert 1e-3 < busy_s / steps < 0.2
    fed = {
        kv: sum(value(shown, "dopd_worker_input_tokens_total", kv=kv) for shown in workers)
        for kv in ("computed", "local", "store")
    }
    assert sum(fed.values()) == (REQUESTS + 2) * (2 * ISL + 1)  # the decode side reads prompt and first token
    store = ran["store"]
    assert fed["store"] <= value(store, "dopd_kv_store_found_tokens_total")
    assert value(store, "dopd_kv_store_found_tokens_total") < value(store, "dopd_kv_store_looked_up_tokens_total")
    assert value(store, "dopd_kv_store_used_tokens") > 0 == value(store, "dopd_kv_store_dropped_tokens_total")
    for shown in workers:
        assert value(shown, "dopd_kv_total_tokens") > value(shown, "dopd_kv_used_tokens") >= 0


def test_the_planner_shows_the_split_and_what_came_of_decisions(ran: dict[str, Values]) -> None:
    shown = ran["planner"]
    assert value(shown, "dopd_planner_leading") == 1
    assert [value(shown, "dopd_planner_workers", role=role) for role in ("prefill", "decode", "mixed")] == [2, 1, 0]
    assert value(shown, "dopd_planner_decisions_total", why="person", reason="person") == 1
    assert value(shown, "dopd_role_changes_total", outcome="drained") == 1
    assert value(shown, "dopd_role_changes_total", outcome="timed_out") == 0
    for stage in ("accepting", "drained"):
        assert value(shown, f"dopd_role_change_{stage}_seconds_count") == 1
    assert value(shown, "dopd_planner_pinned_workers") == 1
    assert [value(shown, "dopd_planner_wanted_workers", role=role) for role in ("prefill", "decode")] == [2, 1]
    predicted = {
        split: value(shown, "dopd_planner_predicted_attainment_ratio", split=split) for split in ("2P1D", "1P2D")
    }
    assert predicted == {"2P1D": 0.99, "1P2D": 0.7}
    assert value(shown, "dopd_planner_predicted_headroom_ratio", split="1P2D") == -0.2


def test_the_forecaster_shows_what_came_and_what_it_expected(ran: dict[str, Values]) -> None:
    shown = ran["forecaster"]
    assert value(shown, "dopd_arrivals_per_second") >= 0
    assert value(shown, "dopd_forecast_requests_per_second", horizon_s="10") > 0
    levels = ("0.1", "0.5", "0.9", "0.95")
    band = [value(shown, "dopd_forecast_quantile_requests_per_second", horizon_s="60", level=level) for level in levels]
    assert band == sorted(band) and band[0] < band[-1]
    assert value(shown, "dopd_forecast_busy_workers", role="prefill", horizon_s="10") > 0
    assert value(shown, "dopd_forecast_timestamp_seconds", horizon_s="300") > 40  # the run's own clock began at 0
    assert value(shown, "dopd_forecast_windows_refused_total", reason="duplicate") == 0
    assert value(shown, "dopd_forecast_error_ratio", series="requests_per_s", horizon_s="10") >= 0


def test_labels_cannot_grow_without_bound() -> None:
    metrics = Metrics("test")
    metrics.add(lambda: [("dopd_request_failures_total", (f"code-{n}",), 1.0) for n in range(1000)])
    lines = [line for line in metrics.page().decode().splitlines() if line.startswith("dopd_request_failures_total{")]
    assert len(lines) == MOST_VALUES + 1
    assert f'{{code="other"}} {1000.0 - MOST_VALUES}' in "".join(lines)


def test_a_metric_that_is_not_in_the_table_is_an_error() -> None:
    metrics = Metrics("test")
    metrics.add(lambda: [("dopd_unheard_of", (), 1.0)])
    with pytest.raises(KeyError, match="dopd_unheard_of"):
        metrics.page()


async def test_connections_that_a_limit_ends_are_counted() -> None:
    async def app(scope: object, receive: object, send: object) -> None:
        raise AssertionError("no request is complete")

    server = HttpServer(app, "127.0.0.1", 0, HttpConfig(header_timeout_s=0.1))
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /v1/models HTTP/1.1\r\n")
    async with asyncio.timeout(20.0):
        assert (await reader.read()).startswith(b"HTTP/1.1 408")
    shown = {labels: value for name, labels, value in connections(server.room) if name == "dopd_http_refused_total"}
    assert shown == {("request_timeout",): 1, ("none",): 0}
    writer.close()
    await writer.wait_closed()
    await server.stop()


# --- the port ---------------------------------------------------------------------------------------------------------


def fails() -> bytes:
    raise ZeroDivisionError("a page that fails")


def later() -> bytes:
    raise NotYet("no worker serves")


@pytest.fixture
async def port():  # type: ignore[no-untyped-def]
    pages: dict[str, Page] = {
        "/metrics": ("text/plain; version=0.0.4", Metrics("test").page),
        "/broken": ("text/plain", fails),
        "/later": ("text/plain", later),
    }
    operator = OperatorHttp(pages, "127.0.0.1", 0)
    yield await operator.start()
    await operator.stop()


async def test_the_port_answers_its_pages_and_nothing_else(port: str) -> None:
    async with httpx.AsyncClient(base_url=port) as client:
        page = await client.get("/metrics?name=x")
        assert page.status_code == 200 and "dopd_build_info" in page.text
        assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert (await client.get("/v1/completions")).status_code == 404
        assert (await client.post("/metrics", content=b"x")).status_code == 405
        assert (await client.get("/broken")).status_code == 500
        not_yet = await client.get("/later")
        assert (not_yet.status_code, not_yet.text) == (503, "no worker serves\n")
        head = await client.head("/metrics")
        assert head.status_code == 200 and not head.content


@pytest.mark.parametrize("sent", [b"\xff\xfe\r\n\r\n", b"\r\n\r\n", b"GET", b"G" * (2 * HEAD_BYTES), b""])
async def test_what_is_no_request_harms_nobody(port: str, sent: bytes) -> None:
    host, number = port.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(number))
    writer.write(sent)
    writer.write_eof()
    async with asyncio.timeout(20.0):
        assert b"200 OK" not in await reader.read()
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
    async with httpx.AsyncClient(base_url=port) as client:
        assert (await client.get("/metrics")).status_code == 200


async def test_a_port_that_is_taken_is_an_error_of_the_configuration(port: str) -> None:
    number = int(port.rpartition(":")[2])
    with pytest.raises(ConfigError, match=r"observability\.operator_port"):
        await OperatorHttp({}, "127.0.0.1", number).start()
