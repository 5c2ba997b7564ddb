"""`LivePage`: the page of one gateway. Looks at the cluster twice a second, and tells those that listen.

Consumes the gateway, the bus and requests that are over; produces the page's files, and events on `/live`. While nobody
listens it only remembers: no document is made, and the planner is not asked.
"""

import asyncio
from importlib.resources import files
from typing import Any

from dopd.errors import RequestError
from dopd.obs.operator_http import OperatorHttp
from dopd.runtime.main import ServiceContext
from dopd.slo import Slo
from dopd.top.listen import last_decisions, listen
from dopd_gateway.core import End, Request
from dopd_gateway.live.listeners import Listeners, event
from dopd_gateway.live.past import About, Past
from dopd_gateway.live.snapshot import difference, snapshot
from dopd_gateway.over import outcome_of
from dopd_gateway.service import Gateway

LOOK_S = 0.5
ALIVE_S = 5.0
"""A listener hears something at least so often, so that a browser can tell a quiet gateway from one that is away."""
ASK_EVERY_S, DECISIONS_ASKED = 2.0, 30
KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


class LivePage:
    """Between `start` and `stop`."""

    def __init__(self, ctx: ServiceContext, gateway: Gateway) -> None:
        self._bus, self._runtime, self._gateway = ctx.bus, ctx.runtime, gateway
        slo = Slo(ctx.config.slo.ttft_s, ctx.config.slo.tpot_s)
        about = About(gateway.gateway_id, gateway.incarnation, gateway.model, ctx.runtime.now(), slo)
        self.past = Past.since(about, ctx.config.gateway.window_s)
        self.listeners = Listeners(self._begin)
        self._document: dict[str, Any] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._asking = asyncio.Event()

    async def start(self, operator: OperatorHttp) -> None:
        """Listen, and serve the page."""
        await listen(self._bus, self.past, self._runtime)
        for path, page in page_files().items():
            operator.page(path, page)
        operator.stream("/live", self.listeners.take)
        self._tasks = [asyncio.create_task(self._look()), asyncio.create_task(self._ask())]

    async def stop(self) -> None:
        """End those that listen."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.listeners.close()

    def ended(self, request: Request, end: End, error: RequestError | None) -> None:
        """`Gateway`'s `on_ended`."""
        self.past.over(request, outcome_of(request, end, error))

    def _begin(self) -> dict[str, Any]:
        """What a new listener is told: the document that changes are told of."""
        if not len(self.listeners):
            self._document = snapshot(self.past, self._runtime.now())
            self._asking.set()
        return self._document

    async def _look(self) -> None:
        told_s = 0.0
        while True:
            await asyncio.sleep(LOOK_S)
            now_s = self._runtime.now()
            known = {name: (each.state, each.heard_s) for name, each in self._gateway.fleet.workers.items()}
            self.past.look(known, len(self._gateway.waiting), self._bus.connected, now_s)
            if not len(self.listeners):
                continue
            after = snapshot(self.past, now_s)
            change = difference(self._document, after)
            if change.keys() > {"at_s"}:
                self.listeners.tell(event("update", change))
            elif now_s - told_s > ALIVE_S:
                self.listeners.tell(b": nothing new\n" + event("update", change))
            else:
                continue
            self._document, told_s = after, now_s

    async def _ask(self) -> None:
        """The planner's decisions, as long as somebody listens."""
        while True:
            await self._asking.wait()
            self.past.decided(await last_decisions(self._bus, DECISIONS_ASKED))
            if not len(self.listeners):
                self._asking.clear()
            await asyncio.sleep(ASK_EVERY_S)


def page_files() -> dict[str, tuple[str, Any]]:
    """By path, as the operator port wants them."""
    made = {}
    for file in (files("dopd_gateway.live") / "page").iterdir():
        text = file.read_bytes()
        kind = f"{KINDS[file.name.rpartition('.')[2]]}; charset=utf-8"
        made["/" if file.name == "index.html" else f"/{file.name}"] = (kind, lambda text=text: text)
    return made
