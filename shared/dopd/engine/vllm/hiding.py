"""vLLM's queues without some of their requests, for as long as it schedules one step.

Consumes vLLM request queues (a deque, or a heap by priority); produces the same queues, shorter inside of the `with`.
"""

from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def hidden(queues: Sequence[Any], shown: Container[str], order: Callable[[Any], tuple[int, int]]) -> Iterator[None]:
    """Take out all requests but those in `shown`; put them back in order, whatever happens."""
    taken = [[request for request in queue if request.request_id not in shown] for queue in queues]
    for queue, requests in zip(queues, taken, strict=True):
        queue.remove_requests(requests)
    try:
        yield
    finally:
        for queue, requests in zip(queues, taken, strict=True):
            _put_back(queue, requests, order)


def _put_back(queue: Any, requests: list[Any], order: Callable[[Any], tuple[int, int]]) -> None:
    if not requests:
        return
    if isinstance(queue, deque):
        everything = sorted([*queue, *requests], key=order)
        queue.clear()
        queue.extend(everything)
        return
    for request in requests:
        queue.add_request(request)
