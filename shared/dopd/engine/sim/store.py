"""The emulated KV store for engines in several processes: `python -m dopd.engine.sim.store` serves it over the bus.

It stands where the LMCache server stands for real engines, and may die and come back like it. `BusStore` is the
engine's side.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence

from dopd.bus import Bus, Subscription
from dopd.engine.sim.kvstore import LocalStore
from dopd.errors import BusError, RequestError
from dopd.obs.metric_table import Sample
from dopd.perf.profile import named
from dopd.runtime.main import ServiceContext, run_service
from dopd_proto.base import Message
from dopd_proto.simstore import StoreAnswer, StoreLookup, StorePut
from dopd_proto.subjects import SIM_STORE, Address

TIMEOUT_S = 1.0


class BusStore:
    """A `KvStore` behind the bus. While it does not answer, nothing is found and nothing kept, and `ok` is false.

    Behind it may be a second one, the domain `shared`, which those of other domains also write to and read from; a
    chunk from there takes `far_chunk_s` more. While it does not answer it is left alone, but for `reaches_shared`.
    """

    def __init__(self, bus: Bus, kv_domain: str, total_tokens: int, shared: str = "", far_chunk_s: float = 0.0) -> None:
        self.total_tokens = total_tokens
        self.ok = True
        self._bus = bus
        self._to = SIM_STORE.at(kv_domain=kv_domain)
        self._far = SIM_STORE.at(kv_domain=shared) if shared else None
        self._far_ok, self._far_chunk_s = True, far_chunk_s
        self._tasks: set[asyncio.Task[None]] = set()

    def lookup(self, keys: Sequence[bytes], answer: Callable[[int], None]) -> None:
        self._spawn(self._look(tuple(keys), answer))

    def put(self, keys: Sequence[bytes], done: Callable[[], None]) -> None:
        self._spawn(self._keep(StorePut(keys=tuple(keys)), done))

    async def reaches_shared(self) -> bool:
        """Whether the shared store answers now."""
        found = await self._ask(self._far, StoreLookup(keys=())) if self._far is not None else None
        self._far_ok = found is not None
        return self._far_ok

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _look(self, keys: tuple[bytes, ...], answer: Callable[[int], None]) -> None:
        near = await self._near(StoreLookup(keys=keys))
        far = await self._beyond(StoreLookup(keys=keys[near:])) if near < len(keys) else 0
        if far:
            await asyncio.sleep(far * self._far_chunk_s)
        answer(near + far)

    async def _keep(self, message: StorePut, done: Callable[[], None]) -> None:
        await asyncio.gather(self._near(message), self._beyond(message))
        done()

    async def _near(self, message: StoreLookup | StorePut) -> int:
        found = await self._ask(self._to, message)
        self.ok = found is not None
        return found or 0

    async def _beyond(self, message: StoreLookup | StorePut) -> int:
        if self._far is None or not self._far_ok:
            return 0
        found = await self._ask(self._far, message)
        self._far_ok = found is not None
        return found or 0

    async def _ask(self, to: Address[Message], message: StoreLookup | StorePut) -> int | None:
        """None when it does not answer."""
        try:
            return (await self._bus.request(to, message, (StoreAnswer,), TIMEOUT_S)).found
        except (BusError, RequestError):
            return None


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
