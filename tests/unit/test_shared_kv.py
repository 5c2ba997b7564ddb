"""Whether the store that hosts share is in reach, as a worker judges it."""

import asyncio
from itertools import chain, repeat

from dopd.engine import shared_kv
from dopd.engine.shared_kv import LOST_AFTER, SharedKv
from dopd.runtime.virtual import run_virtual


def reached(*answers: bool) -> list[bool]:
    """What is believed after each of these answers."""
    come, seen = chain(answers, repeat(answers[-1])), list[bool]()

    async def ask() -> bool:
        seen.append(shared.reached)
        return next(come)

    async def main() -> None:
        watching = asyncio.create_task(shared.watch())
        await asyncio.sleep(shared_kv.ASK_EVERY_S * (len(answers) + 0.5))
        watching.cancel()

    shared = SharedKv("far", 1e-4, ask)
    run_virtual(main())
    return seen[1 : len(answers) + 1]


def test_it_is_out_of_reach_until_it_has_answered() -> None:
    assert reached(False, False, True, True) == [False, False, True, True]


def test_a_late_answer_is_no_outage_and_several_in_a_row_are() -> None:
    assert reached(True, False, True, False, True) == [True] * 5
    assert reached(True, *[False] * LOST_AFTER, True) == [*[True] * LOST_AFTER, False, True]
