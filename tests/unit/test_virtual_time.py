"""Virtual time: order of equal timers, jumps, deadlock instead of a hang, seeded chance and ids."""

import asyncio

import pytest

from dopd.runtime.virtual import Deadlock, VirtualRuntime, run_virtual


def test_equal_deadlines_wake_in_the_order_they_were_set() -> None:
    async def main() -> list[int]:
        woken: list[int] = []

        async def sleeper(number: int) -> None:
            await asyncio.sleep(1)
            woken.append(number)

        await asyncio.gather(*(sleeper(number) for number in range(100)))
        return woken

    assert run_virtual(main()) == list(range(100))


def test_a_year_passes_in_no_time() -> None:
    async def main() -> float:
        await asyncio.sleep(365 * 86_400)
        return VirtualRuntime().now()

    assert run_virtual(main()) == 365 * 86_400


def test_a_timer_fires_at_its_very_time() -> None:
    async def main() -> float:
        loop, runtime = asyncio.get_running_loop(), VirtualRuntime()
        woken: asyncio.Future[float] = loop.create_future()
        loop.call_at(runtime.loop_time(1.1 + 2.2), lambda: woken.set_result(runtime.now()))
        return await woken

    assert run_virtual(main()) == 1.1 + 2.2


def test_a_cancelled_timer_does_not_move_the_clock() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        loop.call_later(1, lambda: None).cancel()
        await asyncio.sleep(0.5)
        return loop.time()

    assert run_virtual(main()) == 0.5


def test_a_time_out_is_met_in_virtual_time() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(30):
                await asyncio.Event().wait()
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == 30


def test_when_everybody_waits_for_nothing_it_raises_instead_of_hanging() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock):
        run_virtual(main())


def test_chance_and_ids_follow_from_the_seed() -> None:
    def draw(seed: int) -> tuple[float, float, str, str]:
        runtime = VirtualRuntime(seed)
        return runtime.rng("a").random(), runtime.rng("b").random(), runtime.new_id("w"), runtime.new_id("w")

    assert draw(1) == draw(1)
    assert draw(1)[0] != draw(2)[0]
    assert draw(1)[0] != draw(1)[1]
    assert draw(1)[2:] == ("w-1", "w-2")
