"""Who gets into a broker with users, what the bus says of refusals, and that nobody borrows another's rights."""

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import nats
import nats.errors
import pytest

from dopd.bus import BusFault
from dopd.bus.nats_bus import NatsBus
from dopd.bus.permissions import USERS, password_variable
from dopd.errors import BrokerRefuses, ConfigError
from dopd_proto.asked import ModelsReply, ModelsRequest
from dopd_proto.codec import encode
from dopd_proto.control import RolesReply, RolesRequest
from dopd_proto.examples import example
from dopd_proto.request import Completion, Generate
from dopd_proto.subjects import FORECAST, GENERATE, MODELS, ROLES
from tests.contract.bus_rig import until
from tests.secured import NATS, ROOT, SecuredBroker
from tests.trying import into, trying

TOLD = ModelsReply(models=())


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredBroker]:
    server = SecuredBroker(tmp_path_factory.mktemp("nats"))
    server.start()
    yield server
    server.stop()


async def test_the_bus_says_at_once_what_its_user_may_not(broker: SecuredBroker) -> None:
    bus = await NatsBus.connect(broker.url_of("worker"), "w1")
    try:
        with pytest.raises(BrokerRefuses, match=r"user 'worker' may not listen on dopd\.v1\.forecast"):
            await bus.subscribe(FORECAST.at(), lambda delivery: None)
        with pytest.raises(BrokerRefuses, match="roles: the user 'worker' may not send there"):
            await bus.request(ROLES.at(), RolesRequest(action="list"), (RolesReply,), timeout_s=60.0)
        with pytest.raises(BrokerRefuses, match="generate: the user 'worker' may not send there"):
            await bus.stream(GENERATE.at(), Generate(model="m", prompt="p"), (Completion,), lambda reply: None)
    finally:
        await bus.drain()


@pytest.mark.parametrize("login", ["", "client@", "client:wrong@", "client:@", "nobody:client@", ":@"])
async def test_nobody_gets_in_without_a_user_and_its_password(broker: SecuredBroker, login: str) -> None:
    url = broker.url.replace("://", f"://{login}")
    with pytest.raises((BrokerRefuses, ConfigError), match=r"does not let in|user's name") as refused:
        await NatsBus.connect(url, "b", connect_timeout_s=60.0)
    assert "wrong" not in str(refused.value)
    with pytest.raises(nats.errors.Error, match=r"(?i)authorization"):
        await nats.connect(url, allow_reconnect=False, error_cb=_nothing)


async def _nothing(_: Exception) -> None:
    pass


def test_the_broker_does_not_start_while_a_password_is_missing(tmp_path: Path) -> None:
    for user in USERS:
        server = SecuredBroker(tmp_path)
        del server.env[password_variable(user)]
        with pytest.raises(RuntimeError, match=f"{password_variable(user)}.*can not be found"):
            server.start()


async def test_the_script_makes_a_password_for_each_user_that_the_broker_takes(tmp_path: Path) -> None:
    made = [_made_passwords() for _ in range(2)]
    variables = dict(line.split("=") for line in made[0].splitlines())
    assert set(variables) == {password_variable(user) for user in USERS}
    assert len(set(variables.values())) == len(USERS)
    assert all(re.fullmatch(r"[a-z][0-9a-f]{48}", password) for password in variables.values())
    assert not set(made[0].splitlines()) & set(made[1].splitlines())
    server = SecuredBroker(tmp_path)
    server.env |= variables
    server.start()
    try:
        for user in USERS:
            bus = await NatsBus.connect(server.url_of(user, variables[password_variable(user)]), user)
            await bus.drain()
    finally:
        server.stop()


def _made_passwords() -> str:
    return subprocess.run([NATS / "passwords.sh"], check=True, capture_output=True, text=True, timeout=10).stdout


async def test_a_password_with_any_character_goes_percent_encoded(tmp_path: Path) -> None:
    server = SecuredBroker(tmp_path)
    server.env["DOPD_NATS_CLIENT_PASSWORD"] = "p@s:s/w%d?"
    server.start()
    try:
        bus = await NatsBus.connect(server.url_of("client", quote("p@s:s/w%d?", safe="")), "c")
        await bus.drain()
    finally:
        server.stop()


async def test_a_part_whose_password_was_changed_says_so_once_and_is_back_with_the_right_one(tmp_path: Path) -> None:
    server, variable = SecuredBroker(tmp_path), password_variable("gateway")
    server.start()
    bus = await NatsBus.connect(server.url_of("gateway"), "g1", reconnect_wait_s=0.02)
    faults: list[BusFault] = []
    bus.on_fault(faults.append)
    try:
        for password in ("pother", server.passwords["gateway"]):
            server.kill()
            server.env[variable] = password
            server.start()
            await until(lambda: any(fault.kind == "refused" for fault in faults), 20.0)
        await until(lambda: bus.connected, 20.0)
        told = [fault.detail for fault in faults if fault.kind == "refused"]
        assert len(told) == 1 and "the user 'gateway' with this password" in told[0]
    finally:
        await bus.drain()
        server.stop()


async def test_one_users_password_is_not_anothers(broker: SecuredBroker) -> None:
    for user in USERS:
        if user != "operator":
            with pytest.raises(BrokerRefuses, match="does not let in the user 'operator'"):
                await NatsBus.connect(broker.url_of("operator", broker.passwords[user]), "b")


async def test_a_client_that_keeps_the_common_inbox_is_told_instead_of_waiting(broker: SecuredBroker) -> None:
    errors: list[str] = []

    async def note(error: Exception) -> None:
        errors.append(str(error))

    client = await nats.connect(broker.url_of("client"), error_cb=note)
    try:
        with pytest.raises(nats.errors.TimeoutError):
            await client.request("dopd.v1.models", b"", timeout=0.2)
        assert any('permissions violation for subscription to "_inbox.' in error for error in errors)
    finally:
        await client.close()


async def test_an_answer_that_a_client_wants_elsewhere_than_in_its_inbox_goes_nowhere(broker: SecuredBroker) -> None:
    gateway = await NatsBus.connect(broker.url_of("gateway"), "g1")
    faults: list[BusFault] = []
    gateway.on_fault(faults.append)
    wanted = ("dopd.v1.worker.w1.abort", "_INBOX.operator.x.1", "dopd.v1.worker.w1.role", "$JS.API.INFO")

    async def answer(_: Generate) -> Completion:
        return example(Completion)

    heard: set[str] = set()
    try:
        await gateway.serve(GENERATE.at(), answer)
        async with trying(broker, "worker") as worker, trying(broker, "client") as client:
            for subject in ("dopd.v1.worker.w1.abort", "dopd.v1.worker.w1.role"):
                await worker.client.subscribe(subject, cb=into(heard))
            await worker.refused()
            for reply in wanted:
                await client.client.publish("dopd.v1.generate", encode(Generate(model="m", prompt="p")), reply)
            await until(lambda: len(faults) == len(wanted))
            assert await worker.refused() == set()
        assert Counter(fault.kind for fault in faults) == {"no_inbox": 3, "broker": 1}
        assert heard == set()
    finally:
        await gateway.drain()


async def test_clients_with_users_of_their_own_do_not_hear_one_another(tmp_path: Path) -> None:
    """As docs/security.md has it."""
    document = (ROOT / "docs/security.md").read_text()
    blocks = re.findall(r"```\n( *\{ user: \"client\.\w+\".*?)```", document, re.DOTALL)
    assert len(blocks) == 1
    for file in NATS.glob("*.conf"):
        shutil.copy(file, tmp_path)
    shipped = (tmp_path / "users.conf").read_text()
    start = shipped.index('    {\n      user: "client"')
    end = shipped.index("\n    }\n", start) + len("\n    }\n")
    (tmp_path / "users.conf").write_text(shipped[:start] + blocks[0] + shipped[end:])
    folder = tmp_path / "run"
    folder.mkdir()
    broker = SecuredBroker(folder, tmp_path / "server.conf")
    broker.passwords |= {"client.alice": "pa", "client.bob": "pb"}
    broker.env |= {"DOPD_NATS_ALICE_PASSWORD": "pa", "DOPD_NATS_BOB_PASSWORD": "pb"}
    broker.start()
    try:
        await _apart(broker)
    finally:
        broker.stop()


async def _apart(broker: SecuredBroker) -> None:
    gateway = await NatsBus.connect(broker.url_of("gateway"), "g1")

    async def answer(_: ModelsRequest) -> ModelsReply:
        return TOLD

    await gateway.serve(MODELS.at(), answer)
    for user, other in (("client.alice", "client.bob"), ("client.bob", "client.alice")):
        bus = await NatsBus.connect(broker.url_of(user), user)
        assert await bus.request(MODELS.at(), ModelsRequest(), (ModelsReply,), 5.0) == TOLD
        await bus.drain()
        async with trying(broker, user) as client:
            await client.client.subscribe(f"_INBOX.{other}.>", cb=into(set()))
            await client.client.subscribe("_INBOX.client.>", cb=into(set()))
            await client.client.publish("dopd.v1.roles", b"")
            assert await client.refused() == {f"_inbox.{other}.>", "_inbox.client.>", "dopd.v1.roles"}
    await gateway.drain()
