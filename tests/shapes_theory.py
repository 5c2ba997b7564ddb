"""Queues as textbooks have them: waits of given arrivals, and means of infinite runs. Pure, seconds everywhere."""

import heapq
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]


def md1_ttft_s(rate: float, service_s: float) -> float:
    """DistServe's mean TTFT of one prefill worker: D + R D^2 / (2 (1 - R D)) (`algorithms.md` 5.1)."""
    return service_s + rate * service_s**2 / (2 * (1 - rate * service_s))


def tensor_parallel_ttft_s(rate: float, service_s: float, speed_up: float) -> float:
    """The same with a worker that is K times as fast: D/K + R D^2 / (2 K (K - R D)) (`algorithms.md` 5.1)."""
    return service_s / speed_up + rate * service_s**2 / (2 * speed_up * (speed_up - rate * service_s))


def waits_s(arrivals_s: Sequence[float] | Times, service_s: float) -> Times:
    """Wait of each of these arrivals at one server, first come, first served (Lindley, with equal services)."""
    # W_n = max over k <= n of (n - k) D - (a_n - a_k): the work brought since the server was last idle, less the time.
    ahead = np.asarray(arrivals_s) - service_s * np.arange(len(arrivals_s))
    return np.asarray(np.maximum.accumulate(ahead) - ahead)


def pooled_waits_s(arrivals_s: Sequence[float], service_s: float, servers: int) -> Times:
    """The same with one queue before several servers (Kiefer-Wolfowitz): no dispatch without one can be better."""
    free_s = [0.0] * servers
    waits = []
    for at_s in arrivals_s:
        start_s = max(at_s, heapq.heappop(free_s))
        waits.append(start_s - at_s)
        heapq.heappush(free_s, start_s + service_s)
    return np.array(waits)


def dealt_waits_s(arrivals_s: Sequence[float], service_s: float, servers: int) -> Times:
    """The same with a queue before each server, and chance alone saying which."""
    rng = np.random.Generator(np.random.PCG64(5))
    times, places = np.asarray(arrivals_s), rng.integers(0, servers, len(arrivals_s))
    return np.concatenate([waits_s(times[places == place], service_s) for place in range(servers)])


def bulk_times_s(arrivals_s: Sequence[float], most: int, batch_s: Callable[[int], float]) -> Times:
    """Time in the system of each arrival at a server that takes all who wait, `most` at once, whenever it is free."""
    free_s, first, times = 0.0, 0, list[float]()
    while first < len(arrivals_s):
        start_s, last = max(free_s, arrivals_s[first]), first
        while last < len(arrivals_s) and last - first < most and arrivals_s[last] <= start_s:
            last += 1
        free_s = start_s + batch_s(last - first)
        times += [free_s - at_s for at_s in arrivals_s[first:last]]
        first = last
    return np.array(times)


def error_of_mean(rate: float, service_s: float, count: int, runs: int = 200) -> float:
    """Standard deviation, between runs of `count` requests, of the mean wait at one server under Poisson arrivals."""
    rng = np.random.Generator(np.random.PCG64(7))
    gaps = rng.exponential(1 / rate, (runs, count))
    return float(np.std([waits_s(np.cumsum(row), service_s).mean() for row in gaps]))
