"""Continuous batching of one emulated engine, step by step. Pure: time comes in, outputs go out.

Like vLLM's scheduler: running requests first (one token each, or the next prompt chunk), then waiting ones as the
gate, the token budget and the KV blocks allow; out of blocks, the youngest running request starts over.
"""

from array import array
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from dopd.engine.contract import Cached, EngineLoad, Job, JobEnd, JobOutput, Logprobs, StepRecord, uncached_tokens
from dopd.engine.sim.blocks import BlockPool
from dopd.engine.sim.tokens import chunk_keys, draw, logprobs, next_key, prefix_state
from dopd.perf.link import Link
from dopd.perf.model import step_s, transfer_s
from dopd.perf.profile import Profile
from dopd.policy.base import StepBudget, StepLimit, StepView, WaitingView
from dopd.policy.gate import admissible

RECORDS = 4096
RETRY_S = 0.05
LAZY_S = 2.0
"""Tokens are reported at the latest with the first step that matters after so long, or gateways would ask for them."""


@dataclass(slots=True, eq=False)
class Seq:
    """A job in the engine. `tokens` is input and output; KV exists for the first `computed` of them.

    `names` are those of its whole chunks as far as they are known, `keys` of those that are in the pool. `blocks`
    counts what is held there, chunks included.

    `admitted` by the gate, which is asked once: what then lacks tokens or memory, or starts over, only waits for those.
    """

    job: Job
    tokens: "array[int]"
    state: int
    nonce: int
    submitted_s: float
    ready_s: float
    store_chunks: int
    names: list[bytes]
    computed: int = 0
    goal: int = 0
    made: int = 0
    undrawn: int = 0
    sent: int = 0
    keys: list[bytes] = field(default_factory=list)
    blocks: int = 0
    cached: Cached | None = None
    times_s: list[float] = field(default_factory=list)
    unstored: list[bytes] = field(default_factory=list)
    admitted: bool = False
    active: bool = False

    @property
    def length(self) -> int:
        return len(self.tokens) + self.undrawn

    @property
    def decoding(self) -> bool:
        return self.computed >= self.goal


class SimCore:
    """The state of one emulated engine."""

    def __init__(self, profile: Profile, save_decode: bool, lazy: bool = False, chunk_tokens: int = 0) -> None:
        """`lazy`: what simulations in bulk want. Besides first tokens and ends (with all tokens before) little is
        reported, and steps are not recorded."""
        self.profile = profile
        self.lazy = lazy
        self.save_decode = save_decode
        self.chunk_tokens = chunk_tokens or profile.chunk_tokens
        self.pool = BlockPool(
            profile.kv_total_tokens // profile.block_tokens, self.chunk_tokens // profile.block_tokens
        )
        self.running: list[Seq] = []
        self.waiting: deque[Seq] = deque()
        self._fetches = Link(profile)
        self._reported_s = 0.0
        self.steps = 0
        self.records: deque[StepRecord] = deque(maxlen=RECORDS)
        self.budget: StepBudget | None = None
        self.budget_state: object = None
        self.budget_for_prefills_only = False
        self._plan: list[tuple[Seq, int]] = []

    # --- in -----------------------------------------------------------------------------------------------------

    def keys_of(self, job: Job) -> list[bytes]:
        """Names of the input's whole chunks, to look up in the store."""
        return chunk_keys(array("I", job.tokens), self.chunk_tokens)

    def submit(self, job: Job, store_chunks: int, nonce: int, now_s: float, names: list[bytes] | None = None) -> None:
        """Queue a job of which the store has `store_chunks` chunks; it is ready when their KV has been moved here.

        `names` are those of `keys_of`, for a caller that has them.
        """
        tokens = array("I", job.tokens)
        names = self.keys_of(job) if names is None else names
        seq = Seq(job, tokens, prefix_state(tokens), nonce, now_s, now_s, store_chunks, names, goal=len(tokens))
        local = self.pool.match(names) if store_chunks else 0
        seq.ready_s = self._fetches.move((store_chunks - local) * self.chunk_tokens, now_s)
        self.waiting.append(seq)

    def retry_at(self, now_s: float) -> float:
        """When to look again at requests that could not start: as the next KV arrives, else soon (gated batches)."""
        return min((seq.ready_s for seq in self.waiting if seq.ready_s > now_s), default=now_s + RETRY_S)

    def abort(self, job_id: str) -> JobOutput | None:
        """Take a job out now; what it has made and not sent comes with its end."""
        for queue in (self.running, self.waiting):
            for seq in queue:
                if seq.job.job_id == job_id:
                    queue.remove(seq)
                    seq.active = False
                    return self._leave(seq, "aborted")
        return None

    # --- one step -----------------------------------------------------------------------------------------------

    def begin_step(self, now_s: float) -> float | None:
        """Plan the next step; its duration in seconds, None when there is nothing to compute."""
        limit = self._limit(now_s)
        most = self.profile.max_step_tokens
        budget = most if limit.max_tokens is None else min(limit.max_tokens, most)
        self._plan = []
        budget -= self._plan_running(budget)
        if self.waiting and budget > 0:
            self._admit(limit, budget, now_s)
        return self._duration() if self._plan else None

    def _plan_running(self, budget: int) -> int:
        used = 0
        # Decodes first: a prompt chunk takes what they leave.
        for seq in sorted(self.running, key=lambda seq: not seq.decoding) if self._mixed() else list(self.running):
            share = min(1 if seq.decoding else seq.goal - seq.computed, budget - used)
            if share > 0 and seq.active and self._grow(seq, share):
                self._plan.append((seq, share))
                used += share
        return used

    def _mixed(self) -> bool:
        return min([seq.computed - seq.goal for seq in self.running], default=0) < 0

    def _grow(self, seq: Seq, count: int) -> bool:
        """Blocks for `count` more tokens, at the cost of the youngest requests. False: `seq` itself had to go."""
        while True:
            need = self._blocks(seq.computed + count) - seq.blocks
            if need <= 0:
                return True
            if self.pool.allocate(need):
                seq.blocks += need
                return True
            youngest = self.running[-1]
            self._start_over(youngest)
            if youngest is seq:
                return False

    def _start_over(self, seq: Seq) -> None:
        self.running.remove(seq)
        seq.active = False
        self._plan = [(other, share) for other, share in self._plan if other is not seq]
        self._release(seq)
        self._draw(seq)
        seq.names = chunk_keys(seq.tokens, self.chunk_tokens)
        seq.keys, seq.blocks, seq.computed, seq.goal, seq.store_chunks = [], 0, 0, seq.length, 0
        self.waiting.appendleft(seq)

    def _admit(self, limit: StepLimit, budget: int, now_s: float) -> None:
        allowed = set(admissible(self._view(now_s), limit))
        for seq in self.waiting:
            seq.admitted = seq.admitted or seq.job.job_id in allowed
        for seq in [seq for seq in self.waiting if seq.admitted]:
            if budget <= 0 or not self._start(seq, now_s):
                return
            self.waiting.remove(seq)
            self.running.append(seq)
            seq.active = True
            share = min(seq.goal - seq.computed, budget)
            self._plan.append((seq, share))
            budget -= share

    def _start(self, seq: Seq, now_s: float) -> bool:
        """Take what the caches have and blocks for the whole input. False when memory is short."""
        keys = seq.names
        local = self.pool.match(keys)
        self.pool.hold(keys[:local])
        hit = max(local, min(seq.store_chunks, len(keys)))
        blocks = self._blocks(len(seq.tokens))
        if not self.pool.allocate(blocks - local * self.pool.chunk_blocks):
            self.pool.release(keys[:local], 0)
            return False
        seq.blocks, seq.keys = blocks, keys[:local]
        # What only this engine's own cache has goes (back) to the store: others will ask for it there.
        seq.unstored = keys[seq.store_chunks : local]
        for key in keys[local:hit]:  # fetched from the store: shared from now on
            self._name(seq, key)
        # At least one token is computed, else there would be no output.
        seq.computed = min(hit * self.chunk_tokens, len(seq.tokens) - 1)
        if seq.cached is None:
            in_local = min(local * self.chunk_tokens, seq.computed)
            moved = (seq.submitted_s, seq.ready_s) if seq.ready_s > seq.submitted_s else (None, None)
            seq.cached = Cached(in_local, seq.computed - in_local, now_s, *moved)
        return True

    def _duration(self, ahead: int = 0) -> float:
        """How long the planned step takes, or the same one when `ahead` such steps of decodes have come before it."""
        tokens = square = decodes = context = stored = 0
        chunk = self.chunk_tokens
        for seq, share in self._plan:
            before = seq.computed + ahead
            after = before + share
            if before >= seq.goal:
                decodes += 1
                context += after
            else:
                tokens += share
                square += after * after - before * before
            if after // chunk > before // chunk and self._stores(seq, after):
                stored += (after // chunk - before // chunk) * chunk
        # The store is written inside the step (engines.md 4.4, engine_driven): no race, at the cost of its time.
        # Nothing else goes out meanwhile, and what is fetched comes in on the link's other direction.
        return step_s(self.profile, tokens, square, decodes, context) + transfer_s(self.profile, stored)

    def end_step(self, now_s: float) -> tuple[list[JobOutput], list[bytes]]:
        """The step planned last is over: outputs, and the names of chunks to put in the store."""
        self.steps += 1
        if self._plan and not self.lazy:
            counts = {seq.job.job_id: share for seq, share in self._plan}
            self.records.append(StepRecord(self.steps, counts, sum(seq.decoding for seq, _ in self._plan)))
        report = not self.lazy or now_s - self._reported_s >= LAZY_S
        if report:
            self._reported_s = now_s
        outputs: list[JobOutput] = []
        stored: list[bytes] = []
        for seq, share in self._plan:
            if not seq.active:  # aborted while the step ran
                continue
            seq.computed += share
            if seq.computed >= seq.goal:
                seq.made += 1
                seq.undrawn += 1
                seq.times_s.append(now_s)
            if seq.unstored or len(seq.keys) < seq.computed // self.chunk_tokens:
                stored += self._name_chunks(seq)
            if seq.made >= seq.job.max_new_tokens:
                self.running.remove(seq)
                seq.active = False
                outputs.append(self._leave(seq, "length"))
            elif seq.made > seq.sent and (report or not seq.sent):
                outputs.append(self._take(seq, None))
        self._plan = []
        return outputs, stored

    def _leave(self, seq: Seq, end: JobEnd) -> JobOutput:
        self._release(seq)
        return self._take(seq, end)

    def _take(self, seq: Seq, end: JobEnd | None) -> JobOutput:
        """What was made and not yet sent."""
        self._draw(seq)
        tokens = tuple(seq.tokens[len(seq.tokens) - (seq.made - seq.sent) :]) if seq.made > seq.sent else ()
        cached = seq.cached if not seq.sent else None
        times = tuple(seq.times_s)
        seq.sent, seq.times_s = seq.made, []
        if not seq.job.emit:
            tokens, times = (), ()
        likely = () if seq.job.sampling.logprobs is None else self._logprobs(seq, len(tokens))
        return JobOutput(seq.job.job_id, tokens, times, end, cached, logprobs=likely)

    def _logprobs(self, seq: Seq, count: int) -> Logprobs:
        all_tokens, most = seq.tokens, seq.job.sampling.logprobs or 0
        places = range(len(all_tokens) - count, len(all_tokens))
        return tuple([logprobs(all_tokens[place - 1], all_tokens[place], place, most) for place in places])

    def _draw(self, seq: Seq) -> None:
        if seq.undrawn:
            drawn, seq.state = draw(seq.state, seq.nonce, seq.undrawn)
            seq.tokens.extend(drawn)
            seq.undrawn = 0

    # --- many steps at once -------------------------------------------------------------------------------------

    def foresee(self, end_s: float) -> list[float]:
        """When the planned step ends, `end_s`, and those after it, as long as each is sure to be the same decodes.

        The last may complete a chunk, end a request or need memory, and is to be ended by `end_step`.
        """
        ends, sure = [end_s], self._sure_steps()
        if sure:
            profile, count = self.profile, len(self._plan)
            context = sum([seq.computed for seq, _ in self._plan]) + count
            for _ in range(sure - 1):
                context += count
                end_s += step_s(profile, 0, 0, count, context)
                ends.append(end_s)
            ends.append(end_s + self._duration(ahead=sure))
        return ends

    def _sure_steps(self) -> int:
        """How many steps from the planned one on are sure to be plain decodes of the same requests, without an end,
        a chunk to store, or memory to reclaim. 0 when the planned step is none of these."""
        plan, chunk = self._plan, self.chunk_tokens
        asked = self.budget is not None and not self.budget_for_prefills_only
        if self.waiting or len(plan) != len(self.running) or not plan or asked or self._mixed():
            return 0
        # Idle chunks are given up lazily and in a fixed order, so it is the same whether one step asks or many at once.
        spare = self.pool.available // len(plan) - 1
        to_end = min([seq.job.max_new_tokens - seq.made for seq, _ in plan])
        to_chunk = chunk - max([seq.computed % chunk for seq, _ in plan])
        return max(0, min(to_end - 1, to_chunk - 1, spare * self.profile.block_tokens))

    def advance(self, ends_s: list[float]) -> None:
        """The planned step and the next ones of `foresee`, which ended at these times, are over; not the last of it."""
        done = len(ends_s)
        self.steps += done
        for seq, _ in self._plan:
            seq.computed += done
            seq.made += done
            seq.undrawn += done
            seq.times_s += ends_s
            self._grow(seq, 1)  # there is enough: nobody has to go

    def take_all(self) -> list[JobOutput]:
        """Everything made and not yet sent (before a crash or a read from outside)."""
        return [self._take(seq, None) for seq in self.running if seq.made > seq.sent]

    # --- views --------------------------------------------------------------------------------------------------

    def _limit(self, now_s: float) -> StepLimit:
        if self.budget is None or (self.budget_for_prefills_only and not self.waiting and not self._mixed()):
            return StepLimit()
        self.budget_state, limit = self.budget.limit(self.budget_state, self._view(now_s))
        return limit

    def _view(self, now_s: float) -> StepView:
        decoding = [seq for seq in self.running if seq.decoding]
        prefilling = [seq for seq in self.running if not seq.decoding] + [seq for seq in self.waiting if seq.admitted]
        return StepView(
            decodes=len(decoding),
            context_tokens=sum(seq.length for seq in decoding),
            prefills=len(prefilling),
            exclusive_running=any(_exclusive(seq) for seq in prefilling),
            waiting=[self._waiting(seq, now_s) for seq in self.waiting if not seq.admitted],
            max_tokens=self.profile.max_step_tokens,
            max_running=self.profile.max_running,
            prefill_context_tokens=sum(seq.computed for seq in prefilling),
        )

    def _waiting(self, seq: Seq, now_s: float) -> WaitingView:
        batch = seq.job.batch
        return WaitingView(
            job_id=seq.job.job_id,
            tokens=self._uncached(seq),
            waited_s=now_s - seq.submitted_s,
            ready=seq.ready_s <= now_s,
            batch_id=batch.batch_id if batch else "",
            batch_size=batch.size if batch else 1,
            exclusive=bool(batch and batch.exclusive),
        )

    def _uncached(self, seq: Seq) -> int:
        return max(1, len(seq.tokens) - seq.store_chunks * self.chunk_tokens)

    def load(self, looking: Collection[Job], store_total_tokens: int, store_ok: bool) -> EngineLoad:
        """The engine now. `looking` are jobs that still look their KV up in the store."""
        left = [seq.goal - seq.computed for seq in self.running]
        lengths = [len(seq.tokens) + seq.undrawn for seq in self.running if seq.computed >= seq.goal]
        queued = [self._uncached(seq) for seq in self.waiting]
        queued += [uncached_tokens(job, self.chunk_tokens) for job in looking]
        return EngineLoad(
            steps=self.steps,
            running=len(self.running),
            waiting=len(queued),
            decoding=len(lengths),
            queued_prefill_tokens=sum(queued) + sum([tokens for tokens in left if tokens > 0]),
            context_tokens=sum(lengths),
            kv_used_tokens=self.pool.used * self.profile.block_tokens,
            kv_total_tokens=self.pool.total * self.profile.block_tokens,
            store_total_tokens=store_total_tokens,
            store_ok=store_ok,
        )

    # --- blocks and chunks --------------------------------------------------------------------------------------

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.profile.block_tokens)

    def _release(self, seq: Seq) -> None:
        self.pool.release(seq.keys, seq.blocks - len(seq.keys) * self.pool.chunk_blocks)

    def _stores(self, seq: Seq, upto: int) -> bool:
        return self.save_decode or upto <= seq.job.prompt_tokens

    def _name(self, seq: Seq, key: bytes) -> None:
        self.pool.share(key)
        seq.keys.append(key)

    def _name_chunks(self, seq: Seq) -> Sequence[bytes]:
        """Name the chunks that this step completed; those the store should have."""
        stored, seq.unstored = seq.unstored, []
        while (upto := (len(seq.keys) + 1) * self.chunk_tokens) <= seq.computed:
            if len(seq.keys) == len(seq.names):
                self._draw(seq)
                chunk = seq.tokens[upto - self.chunk_tokens : upto]
                seq.names.append(next_key(seq.names[-1] if seq.names else b"", chunk))
            key = seq.names[len(seq.keys)]
            self._name(seq, key)
            if self._stores(seq, upto):
                stored.append(key)
        return stored


def _exclusive(seq: Seq) -> bool:
    return seq.job.batch is not None and seq.job.batch.exclusive
