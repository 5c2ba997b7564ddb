"""Every user of the shipped broker configuration tries everything that it must not do, and what it may do works."""

from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from dopd.bus.permissions import USERS
from dopd.errors import LedgerLost
from dopd.ledger.jetstream import JetStreamLedger
from dopd.runtime.clock import RealRuntime
from dopd_proto.subjects import SUBJECTS, Subject
from tests.contract.bus_rig import until
from tests.secured import SecuredBroker
from tests.trying import into, trying

PLACES = {"worker_id": "w1", "gateway_id": "g1", "kv_domain": "local"}
# Written out once more, by hand: what follows from SUBJECTS must be this.
MAY_SEND = {
    "gateway": "prefill decode abort resend state.gateway.g1 arrivals.g1 outcomes.g1 v1.decisions",
    "worker": "decode tokens.w1 state.worker.w1 simstore.local",
    "planner": "w1.role",
    "forecaster": "forecast",
    "kv-store": "",
    "client": "generate chat models",
    "operator": "v1.roles v1.decisions",
}
MAY_HEAR = {
    "gateway": "generate chat models tokens.w1 state.worker.w1 state.gateway.g1 arrivals.g1 outcomes.g1 forecast",
    "worker": "prefill decode abort resend w1.role state.worker.w1 state.gateway.g1",
    "planner": "state.worker.w1 state.gateway.g1 forecast v1.roles v1.decisions",
    "forecaster": "arrivals.g1 outcomes.g1",
    "kv-store": "simstore.local",
    "client": "",
    "operator": "state.worker.w1 state.gateway.g1 arrivals.g1 outcomes.g1 forecast",
}
ANSWERS = {
    "gateway": "client", "worker": "gateway", "planner": "gateway operator", "forecaster": "", "kv-store": "worker",
    "client": "", "operator": "",
}  # fmt: skip
STREAM_VERBS = ("CREATE", "UPDATE", "INFO", "DELETE", "PURGE", "MSG.GET", "MSG.DELETE")
LEDGER = (
    "dopd.ledger.decisions",
    "dopd.ledger.more",
    "$KV.dopd_ledger.lease.planner",
    "$KV.dopd_ledger.key.pins",
    "$JS.API.INFO",
    *(f"$JS.API.STREAM.{verb}.dopd_log_decisions" for verb in STREAM_VERBS),
    *(f"$JS.API.STREAM.{verb}.KV_dopd_ledger" for verb in STREAM_VERBS),
    "$JS.API.DIRECT.GET.dopd_log_decisions",
    "$JS.API.CONSUMER.CREATE.dopd_log_decisions",
    "$JS.API.STREAM.CREATE.another",
)
PLANNERS = {
    "dopd.ledger.decisions",
    "$KV.dopd_ledger.lease.planner",
    "$KV.dopd_ledger.key.pins",
    *(f"$JS.API.STREAM.{verb}" for verb in ("CREATE.dopd_log_decisions", "INFO.dopd_log_decisions")),
    *(f"$JS.API.STREAM.{verb}.KV_dopd_ledger" for verb in ("CREATE", "MSG.GET")),
    "$JS.API.DIRECT.GET.dopd_log_decisions",
}
TOO_WIDE = (
    ">", "*.>", "dopd.>", "dopd.v1.>", "dopd.v1.worker.>", "dopd.v1.*", "dopd.ledger.>", "_INBOX.>", "_INBOX.*.>",
    "$JS.>", "$KV.>", "$SYS.>", "$SYS.REQ.SERVER.PING",
)  # fmt: skip


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredBroker]:
    server = SecuredBroker(tmp_path_factory.mktemp("nats"))
    server.start()
    yield server
    server.stop()


def concrete(subject: Subject[Any]) -> str:
    return subject.template.format(**PLACES)


def named(words: str) -> set[str]:
    """The subjects of which these are the ends."""
    found = {
        word: [concrete(each) for each in SUBJECTS if concrete(each).endswith(f".{word}")] for word in words.split()
    }
    assert all(len(subjects) == 1 for subjects in found.values()), found
    return {subjects[0] for subjects in found.values()}


EVERY = {concrete(each) for each in SUBJECTS}


@pytest.mark.parametrize("user", USERS)
async def test_what_a_user_may_not_send_is_refused_and_what_it_may_send_arrives(
    broker: SecuredBroker, user: str
) -> None:
    heard: set[str] = set()
    async with AsyncExitStack() as stack:
        for hearer in USERS:
            other = await stack.enter_async_context(trying(broker, hearer))
            for subject in named(MAY_HEAR[hearer]):
                await other.client.subscribe(subject, cb=into(heard))
            assert await other.refused() == set()
        sender = await stack.enter_async_context(trying(broker, user))
        for subject in EVERY:
            await sender.client.publish(subject, b"")
        assert await sender.refused() == EVERY - named(MAY_SEND[user])
        await until(lambda: heard == named(MAY_SEND[user]))


@pytest.mark.parametrize("user", USERS)
async def test_what_a_user_may_not_hear_is_refused(broker: SecuredBroker, user: str) -> None:
    async with trying(broker, user) as hearer:
        for subject in EVERY:
            await hearer.client.subscribe(subject, cb=into(set()))
        assert await hearer.refused() == EVERY - named(MAY_HEAR[user])


@pytest.mark.parametrize("user", USERS)
async def test_nobody_listens_to_more_than_his_own_by_a_wide_pattern(broker: SecuredBroker, user: str) -> None:
    async with trying(broker, user) as hearer:
        for pattern in TOO_WIDE:
            await hearer.client.subscribe(pattern, cb=into(set()))
        assert await hearer.refused() == {pattern.lower() for pattern in TOO_WIDE}


@pytest.mark.parametrize("user", USERS)
async def test_nobody_hears_anothers_answers(broker: SecuredBroker, user: str) -> None:
    inboxes = {f"_inbox.{other}.{end}" for other in USERS if other != user for end in ("x", "x.1", "*", "*.*", ">")}
    async with trying(broker, user) as hearer:
        for inbox in inboxes:
            await hearer.client.subscribe(inbox.replace("_inbox", "_INBOX"), cb=into(set()))
        assert await hearer.refused() == inboxes


@pytest.mark.parametrize("user", USERS)
async def test_nobody_forges_an_answer_to_one_who_did_not_ask_him(broker: SecuredBroker, user: str) -> None:
    inboxes = {other: f"_INBOX.{other}.x.1" for other in USERS}
    async with trying(broker, user) as sender:
        for inbox in inboxes.values():
            await sender.client.publish(inbox, b"")
        allowed = {inboxes[other] for other in (user, *ANSWERS[user].split())}
        assert await sender.refused() == {inbox.lower() for inbox in set(inboxes.values()) - allowed}


@pytest.mark.parametrize("user", USERS)
async def test_the_ledger_is_out_of_reach_of_all_but_the_planner_who_cannot_delete_it(
    broker: SecuredBroker, user: str
) -> None:
    async with trying(broker, user) as sender:
        for subject in LEDGER:
            await sender.client.publish(subject, b"no request")
        allowed = PLANNERS if user == "planner" else set()
        assert await sender.refused() == {subject.lower() for subject in set(LEDGER) - allowed}


@pytest.mark.parametrize("user", USERS)
async def test_clients_alone_ask_who_is_there_and_gateways_alone_answer(broker: SecuredBroker, user: str) -> None:
    ask, hear = "$SRV.PING.dopd", "$SRV.INFO"
    async with trying(broker, user) as trier:
        await trier.client.publish(ask, b"")
        await trier.client.subscribe(hear, cb=into(set()))
        refused = {ask.lower() if user != "client" else "", hear.lower() if user != "gateway" else ""}
        assert await trier.refused() == refused - {""}


async def test_a_ledger_works_under_the_planners_user_and_under_no_other(broker: SecuredBroker) -> None:
    ledger = await JetStreamLedger.open(broker.url_of("planner"), RealRuntime())
    try:
        index = await ledger.append("decisions", b"because")
        assert [entry.payload for entry in await ledger.read("decisions", index)] == [b"because"]
        revision = await ledger.put("pins", b"1", 0)
        assert await ledger.get("pins") == (b"1", revision)
        lease = await ledger.acquire("planner", "p1", 5.0)
        assert lease is not None
        await ledger.release(lease)
    finally:
        await ledger.close()
    for user in USERS:
        if user != "planner":
            await _no_ledger(broker, user)


async def _no_ledger(broker: SecuredBroker, user: str) -> None:
    ledger = await JetStreamLedger.open(broker.url_of(user), RealRuntime(), timeout_s=0.2)
    try:
        with pytest.raises(LedgerLost):
            await ledger.append("decisions", b"forged")
        with pytest.raises(LedgerLost):
            await ledger.get("pins")
    finally:
        await ledger.close()
