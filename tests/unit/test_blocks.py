"""KV blocks of an emulated engine are never lost and never given to two."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dopd.engine.sim.blocks import BlockPool

CHUNK = 4
keys = st.integers(0, 5).map(lambda number: bytes([number]))


def test_idle_chunks_are_given_up_oldest_first_and_tails_before_prefixes() -> None:
    pool = BlockPool(12, CHUNK)
    assert pool.allocate(8)
    pool.share(b"a")
    pool.share(b"b")
    pool.release([b"a", b"b"], 0)
    assert (pool.used, pool.free, pool.match([b"a", b"b"])) == (0, 4, 2)
    assert pool.allocate(8)
    assert (pool.match([b"a"]), pool.match([b"b"])) == (1, 0)


def test_what_does_not_fit_takes_nothing() -> None:
    pool = BlockPool(10, CHUNK)
    assert pool.allocate(6)
    assert not pool.allocate(5)
    assert (pool.free, pool.used) == (4, 6)


def test_a_chunk_that_exists_already_gives_its_blocks_back() -> None:
    pool = BlockPool(12, CHUNK)
    assert pool.allocate(8)
    pool.share(b"a")
    pool.share(b"a")
    assert (pool.free, pool.used) == (8, 4)
    pool.release([b"a"], 0)
    assert pool.used == 4
    pool.release([b"a"], 0)
    assert (pool.used, pool.free) == (0, 8)


class Conservation(RuleBasedStateMachine):
    """Requests that take, share and give back, against a plain count of what they hold."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(40, CHUNK)
        self.requests: list[tuple[list[bytes], int]] = []

    @rule(blocks=st.integers(0, 30))
    def start(self, blocks: int) -> None:
        if self.pool.allocate(blocks):
            self.requests.append(([], blocks))

    @rule(wanted=st.lists(keys, max_size=4, unique=True), blocks=st.integers(0, 8))
    def start_with_a_prefix(self, wanted: list[bytes], blocks: int) -> None:
        found = wanted[: self.pool.match(wanted)]
        self.pool.hold(found)
        if self.pool.allocate(blocks):
            self.requests.append((found, blocks))
        else:
            self.pool.release(found, 0)

    @rule(data=st.data(), key=keys)
    def name_a_chunk(self, data: st.DataObject, key: bytes) -> None:
        able = [n for n, (named, private) in enumerate(self.requests) if private >= CHUNK and key not in named]
        if able:
            number = data.draw(st.sampled_from(able))
            named, private = self.requests[number]
            self.pool.share(key)
            self.requests[number] = ([*named, key], private - CHUNK)

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        if self.requests:
            self.pool.release(*self.requests.pop(data.draw(st.integers(0, len(self.requests) - 1))))

    @invariant()
    def every_block_is_free_cached_or_held_once(self) -> None:
        shared = {key for named, _ in self.requests for key in named}
        held = len(shared) * CHUNK + sum(private for _, private in self.requests)
        assert self.pool.used == held
        assert 0 <= self.pool.free <= self.pool.total - held
        assert all(self.pool.match([key]) for key in shared)
        assert (self.pool.total - held - self.pool.free) % CHUNK == 0


TestConservation = Conservation.TestCase
TestConservation.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
