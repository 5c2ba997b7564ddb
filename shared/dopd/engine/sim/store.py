"""The emulated KV store for engines in several processes: `python -m dopd.engine.sim.store` serves it over the bus.

It stands where the LMCache server stands for real engines, and may die and come back like it. `BusStore` is the
engine's side.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence

from dopd.bus import Bus, Subscription
from dopd.engine.sim.kvstore import LocalStore
from dopd.errors import BusError, RequestError
from dopd.obs.metric_table import Sample
from dopd.perf.profile import named
from dopd.runtime.main import ServiceContext, run_service
from dopd_proto.base import Message
from dopd_proto.simstore import StoreAnswer, StoreLookup, StorePut
from dopd_proto.subjects import SIM_STORE

TIMEOUT_S = 1.0


class BusStore:
    """A `KvStore` behind the bus. While it does not answer, nothing is found and nothing kept, and `ok` is false."""

    def __init__(self, bus: Bus, kv_domain: str, total_tokens: int) -> None:
        self.total_tokens = total_tokens
        self.ok = True
        self._bus = bus
        self._to = SIM_STORE.at(kv_domain=kv_domain)
        self._tasks: set[asyncio.Task[None]] = set()

    def lookup(self, keys: Sequence[bytes], answer: Callable[[int], None]) -> None:
        self._spawn(StoreLookup(keys=tuple(keys)), answer)

    def put(self, keys: Sequence[bytes], done: Callable[[], None]) -> None:
        self._spawn(StorePut(keys=tuple(keys)), lambda _: done())

    def _spawn(self, message: StoreLookup | StorePut, answer: Callable[[int], None]) -> None:
        task = asyncio.get_running_loop().create_task(self._ask(message, answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, message: StoreLookup | StorePut, answer: Callable[[int], None]) -> None:
        found = 0
        try:
            found = (await self._bus.request(self._to, message, (StoreAnswer,), TIMEOUT_S)).found
            self.ok = True
        except (BusError, RequestError):
            self.ok = False
        answer(found)


async def serve_store(bus: Bus, kv_domain: str, store: LocalStore) -> Subscription:
    """Answer for one domain."""

    async def on_request(message: Message) -> StoreAnswer:
        if isinstance(message, StoreLookup):
            return StoreAnswer(found=store.match(message.keys))
        assert isinstance(message, StorePut)
        store.insert(message.keys)
        return StoreAnswer(found=len(message.keys))

    return await bus.serve(SIM_STORE.at(kv_domain=kv_domain), on_request)


def samples(store: LocalStore) -> Iterator[Sample]:
    """What it holds and has answered, in tokens."""
    size = store.chunk_tokens
    yield "dopd_kv_store_used_tokens", (), len(store) * size
    yield "dopd_kv_store_looked_up_tokens_total", (), store.looked_up * size
    yield "dopd_kv_store_found_tokens_total", (), store.found * size
    yield "dopd_kv_store_dropped_tokens_total", (), store.dropped * size


async def main(ctx: ServiceContext) -> None:
    """Run until asked to stop."""
    engine = ctx.config.engine
    store = LocalStore(engine.sim_store_tokens, named(engine.profile).chunk_tokens)
    ctx.metrics.add(lambda: samples(store))
    serving = await serve_store(ctx.bus, engine.kv_domain, store)
    ctx.readiness.when()
    await ctx.stop.wait()
    await serving.stop()


if __name__ == "__main__":
    run_service("kv-store", main)
