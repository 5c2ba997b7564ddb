"""Who gets a message: subject patterns, queue groups and a cache from subject to receivers.

Consumes: subscriptions with a pattern. Produces: the receivers of a subject, in the order they subscribed.
The cache is the hot path of simulations: a known subject costs one dictionary look-up.
"""

import itertools
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Receiver(Protocol):
    """What the table needs to know of a subscription. An empty `queue` is none."""

    @property
    def pattern(self) -> str: ...

    @property
    def queue(self) -> str: ...


S = TypeVar("S", bound=Receiver)


def has_wildcard(pattern: str) -> bool:
    """Whether some token is `*`, or the last one `>`."""
    return any(token in ("*", ">") for token in pattern.split("."))


def matches(pattern: str, subject: str) -> bool:
    """NATS rules: `*` is exactly one token, `>` at the end is one or more."""
    want, have = pattern.split("."), subject.split(".")
    if want[-1] == ">":
        want = want[:-1]
        if len(have) <= len(want):
            return False
        have = have[: len(want)]
    return len(want) == len(have) and all(w in ("*", h) for w, h in zip(want, have, strict=True))


class Route(Generic[S]):
    """The receivers of one subject: all of `plain`, and one of each group in turn."""

    __slots__ = ("groups", "plain")

    def __init__(self, plain: tuple[S, ...], groups: tuple[tuple[tuple[S, ...], Iterator[int]], ...]) -> None:
        self.plain, self.groups = plain, groups

    def __bool__(self) -> bool:
        return bool(self.plain or self.groups)

    def pick(self) -> tuple[S, ...]:
        """The receivers of the next message. Moves the groups' turns on."""
        if not self.groups:
            return self.plain
        return self.plain + tuple(members[next(turn) % len(members)] for members, turn in self.groups)


class RouteTable(Generic[S]):
    """All subscriptions of one broker."""

    def __init__(self) -> None:
        self._exact: dict[str, list[S]] = {}
        # By pattern as well: many listen to the same, and each pattern is held against a subject once.
        self._wild: dict[str, list[S]] = {}
        self._numbers: dict[int, int] = {}
        self._next_number = itertools.count()
        self._cache: dict[str, Route[S]] = {}
        # Turns outlive the routes, or each subscription elsewhere would start the round robin anew.
        self._turns: dict[tuple[str, str], Iterator[int]] = {}

    def add(self, receiver: S) -> None:
        """Nothing happens when it is already there."""
        if id(receiver) in self._numbers:
            return
        self._numbers[id(receiver)] = next(self._next_number)
        self._table(receiver).setdefault(receiver.pattern, []).append(receiver)
        self._forget(receiver)

    def remove(self, receiver: S) -> None:
        """Nothing happens when it is not there."""
        if self._numbers.pop(id(receiver), None) is None:
            return
        table = self._table(receiver)
        table[receiver.pattern].remove(receiver)
        if not table[receiver.pattern]:
            del table[receiver.pattern]
        self._forget(receiver)

    def _table(self, receiver: S) -> dict[str, list[S]]:
        return self._wild if has_wildcard(receiver.pattern) else self._exact

    def _forget(self, receiver: S) -> None:
        """Routes that are not true any more."""
        if has_wildcard(receiver.pattern):
            self._cache.clear()
        else:
            self._cache.pop(receiver.pattern, None)

    def route(self, subject: str) -> Route[S]:
        found = self._cache.get(subject)
        if found is None:
            found = self._build(subject)
            # Only routes that lead somewhere are kept: inboxes that are gone would fill the memory.
            if found:
                self._cache[subject] = found
        return found

    def _build(self, subject: str) -> Route[S]:
        found = list(self._exact.get(subject, ()))
        # Inboxes come and go with each request; patterns on them do not exist, so spare them the search.
        if not subject.startswith("_INBOX."):
            for pattern, receivers in self._wild.items():
                if matches(pattern, subject):
                    found += receivers
        found.sort(key=lambda receiver: self._numbers[id(receiver)])
        groups: dict[str, list[S]] = {}
        for receiver in found:
            if receiver.queue:
                groups.setdefault(receiver.queue, []).append(receiver)
        return Route(
            tuple(receiver for receiver in found if not receiver.queue),
            tuple((tuple(members), self._turn(subject, queue)) for queue, members in groups.items()),
        )

    def _turn(self, subject: str, queue: str) -> Iterator[int]:
        return self._turns.setdefault((subject, queue), itertools.count())
