"""The broker over TLS, as `deploy/nats/tls.conf` and `dev-ca.sh` have it: who verifies whom, and who is cut off."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dopd import config as configs
from dopd.bus.nats_bus import NatsBus
from dopd.bus.reach import reach
from dopd.errors import BrokerRefuses, ConfigError, LedgerLost
from dopd.ledger.jetstream import JetStreamLedger
from dopd.runtime.clock import RealRuntime
from dopd_proto.asked import ModelsReply, ModelsRequest
from dopd_proto.subjects import MODELS
from tests.contract.bus_rig import until
from tests.nats_server import NatsServer, nats_server
from tests.secured import SecuredBroker, make_certificates, tls_broker

TOLD = ModelsReply(models=())
__all__ = ["nats_server"]
ENDLESS_S = 60.0
"""Refusals come at once and not after this."""


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, ca: Path) -> Iterator[SecuredBroker]:
    server = tls_broker(tmp_path_factory.mktemp("nats"), ca.parent)
    server.start()
    yield server
    server.stop()


async def _answered(broker: SecuredBroker, ca: Path) -> None:
    gateway = await NatsBus.connect(broker.url_of("gateway"), "g1", ca_file=str(ca))
    client = await NatsBus.connect(broker.url_of("client"), "c", ca_file=str(ca))

    async def answer(_: ModelsRequest) -> ModelsReply:
        return TOLD

    try:
        await gateway.serve(MODELS.at(), answer)
        assert await client.request(MODELS.at(), ModelsRequest(), (ModelsReply,), 5.0) == TOLD
    finally:
        await client.drain()
        await gateway.drain()


async def test_parts_with_the_ca_talk_to_each_other(broker: SecuredBroker, ca: Path) -> None:
    await _answered(broker, ca)


async def test_the_ledger_works_over_tls(broker: SecuredBroker, ca: Path) -> None:
    ledger = await JetStreamLedger.open(broker.url_of("planner"), RealRuntime(), ca_file=str(ca))
    try:
        index = await ledger.append("decisions", b"because")
        assert [entry.payload for entry in await ledger.read("decisions", index)] == [b"because"]
    finally:
        await ledger.close()


async def test_a_part_is_back_over_tls_after_the_broker_was(tmp_path: Path, ca: Path) -> None:
    server = tls_broker(tmp_path, ca.parent)
    server.start()
    bus = await NatsBus.connect(server.url_of("gateway"), "g1", ca_file=str(ca))
    try:
        server.kill()
        await until(lambda: not bus.connected)
        server.start()
        await until(lambda: bus.connected, 20.0)
    finally:
        await bus.drain()
        server.stop()


@pytest.mark.parametrize("scheme", ["nats", "tls"])
async def test_a_client_without_the_ca_is_refused_and_told_which_key_is_missing(
    broker: SecuredBroker, scheme: str
) -> None:
    url = broker.url_of("client").replace(urlsplit(broker.url).scheme, scheme)
    with pytest.raises(BrokerRefuses, match=r"certificate does not verify.*cluster\.nats_ca_file"):
        await NatsBus.connect(url, "c", connect_timeout_s=ENDLESS_S)


async def test_a_client_with_another_ca_is_refused(broker: SecuredBroker, tmp_path: Path) -> None:
    other = make_certificates(tmp_path / "other")
    with pytest.raises(BrokerRefuses, match="certificate does not verify"):
        await NatsBus.connect(broker.url_of("client"), "c", ca_file=str(other), connect_timeout_s=ENDLESS_S)
    with pytest.raises(LedgerLost):
        await JetStreamLedger.open(broker.url_of("planner"), RealRuntime(), timeout_s=0.5, ca_file=str(other))


async def test_a_broker_under_another_name_than_its_certificates_is_refused(ca: Path, tmp_path: Path) -> None:
    elsewhere = tls_broker(tmp_path, ca.parent, host="127.0.0.2")
    elsewhere.start()
    try:
        with pytest.raises(BrokerRefuses, match=r"certificate does not verify.*127\.0\.0\.2"):
            await NatsBus.connect(elsewhere.url_of("client"), "c", ca_file=str(ca), connect_timeout_s=ENDLESS_S)
    finally:
        elsewhere.stop()


def test_a_plain_client_is_cut_off_before_anything_is_done_for_it(broker: SecuredBroker) -> None:
    to = urlsplit(broker.url)
    with socket.create_connection((to.hostname, to.port), 5.0) as plain:
        assert plain.recv(4096).startswith(b"INFO ")
        hello = f'{{"user":"client","pass":"{broker.passwords["client"]}","verbose":true}}'
        plain.sendall(f"CONNECT {hello}\r\nPUB dopd.v1.models 0\r\n\r\nPING\r\n".encode())
        said = b""
        while piece := _received(plain):
            said += piece
    assert b"+OK" not in said
    assert b"PONG" not in said


def _received(plain: socket.socket) -> bytes:
    try:
        return plain.recv(4096)
    except ConnectionResetError:
        return b""


async def test_with_a_ca_no_password_goes_to_a_broker_without_tls(nats_server: NatsServer, ca: Path) -> None:
    """Whoever stands between could say that there is no TLS."""
    got = bytearray()

    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.9.10","max_payload":1048576,"auth_required":true}\r\n')
        while piece := await reader.read(4096):
            got.extend(piece)
        writer.close()

    between = await asyncio.start_server(pretend, "127.0.0.1", 0)
    port = between.sockets[0].getsockname()[1]
    for ca_file, scheme in ((str(ca), "nats"), (str(ca), "tls"), ("", "tls")):
        url = f"{scheme}://gateway:secret@127.0.0.1:{port}"
        with pytest.raises(BrokerRefuses, match="offers no TLS"):
            await NatsBus.connect(url, "g1", ca_file=ca_file, connect_timeout_s=ENDLESS_S)
        with pytest.raises(LedgerLost):
            await JetStreamLedger.open(url, RealRuntime(), timeout_s=0.3, ca_file=ca_file)
    between.close()
    assert b"secret" not in got
    with pytest.raises(BrokerRefuses, match="offers no TLS"):
        await NatsBus.connect(nats_server.url, "g1", ca_file=str(ca), connect_timeout_s=ENDLESS_S)


@pytest.mark.parametrize(
    ("text", "why"), [(None, "cannot be read"), ("", "has no certificate"), ("no PEM: ü", "has no certificate")]
)
def test_a_ca_file_that_cannot_be_used_is_named_with_its_key_and_what_to_do(
    tmp_path: Path, text: str | None, why: str
) -> None:
    file = tmp_path / "ca.crt"
    if text is not None:
        file.write_text(text)
    config = configs.load(env={"DOPD__CLUSTER__NATS_CA_FILE": str(file)})
    with pytest.raises(ConfigError) as error:
        reach("nats://gateway:secret@nats:4222", config.cluster.nats_ca_file)
    assert (error.value.where, error.value.key) == (str(file), "cluster.nats_ca_file")
    assert why in error.value.fix
    assert "dev-ca.sh" in error.value.fix
