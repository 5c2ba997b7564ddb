"""The order of a comparison: scout the rates, tune, run every case, search. Consumes `Wanted` and a crew; fills a
`Comparison`, which is whole at every moment, so that what was finished can be shown when it is broken off.

Results are kept by case and put in the order of the command line, so neither the number of processes nor which of them
was faster shows.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dopd_loadgen.compare import rates as rated
from dopd_loadgen.compare.crew import Work
from dopd_loadgen.compare.model import Contender, Row, Setting
from dopd_loadgen.compare.result import BoundRow, Comparison, Detail, Found, LoadRow, Prepared, Wanted
from dopd_loadgen.compare.tasks import Case, Ground, Limit, Measure, Scout, Task, Tune, spec_for
from dopd_loadgen.workload import WorkloadSpec

Tell = Callable[[str, int, int], None]
"""Called with the stage in words, and how many of how many of its tasks are done."""


@dataclass
class Campaign:
    """What is to be compared, and what is known so far."""

    wanted: Wanted
    specs: dict[str, WorkloadSpec]
    settings: dict[str, Setting]
    work: Work[Task, Any]
    tell: Tell
    rows: dict[Case, Row] = field(default_factory=dict)
    details: dict[Case, Detail] = field(default_factory=dict)
    contenders: dict[tuple[Ground, str], Contender] = field(default_factory=dict)
    tuned_at: dict[Ground, float] = field(default_factory=dict)
    grid: dict[Ground, list[float]] = field(default_factory=dict)
    limits: dict[tuple[Ground, float, int], tuple[LoadRow, BoundRow]] = field(default_factory=dict)
    scouted: dict[Ground, dict[str, dict[float, float]]] = field(default_factory=dict)
    found: list[Found] = field(default_factory=list)

    @property
    def grounds(self) -> list[Ground]:
        """Every trace on every profile, in the order of the command line."""
        return [Ground(trace, profile) for trace in self.wanted.traces for profile in self.wanted.profiles]

    def run(self) -> None:
        """All of it. Raises LoadError."""
        self._choose_rates()
        self._tune()
        for seed in self.wanted.seeds:  # whole seeds one after the other, so that one broken off has figures that pair
            self._bound(seed)
            self._measure(self._grid_cases(seed), f"measuring seed {seed}")
        if self.wanted.targets:
            self._search()

    def comparison(self, interrupted: bool = False) -> Comparison:
        """What is known, in the order of the command line. Pictures are kept of one rate per ground and one seed."""
        order = {name: number for number, name in enumerate(self.wanted.policies)}
        place = {ground: number for number, ground in enumerate(self.grounds)}
        on_grid = [case for case in self.rows if case.rate_scale in self.grid.get(case.ground, [])]
        cases = sorted(on_grid, key=lambda c: (place[c.ground], c.rate_scale, order[c.policy], c.seed))
        limits = sorted(self.limits, key=lambda key: (place[key[0]], *key[1:]))
        shown = {ground: telling_rate([self.rows[case] for case in cases if case.ground == ground]) for ground in place}
        return Comparison(
            config=self.wanted,
            rows=[self.rows[case] for case in cases],
            prepared=[self._prepared(g, p) for g in place for p in order if (g, p) in self.contenders],
            loads=[self.limits[key][0] for key in limits],
            bounds=[self.limits[key][1] for key in limits],
            goodput=self.found,
            details=[self.details[c] for c in cases if c in self.details and c.rate_scale == shown[c.ground]],
            scouted=[
                {"trace": g.trace, "profile": g.profile, "attainment": {p: sorted(a.items()) for p, a in by.items()}}
                for g, by in self.scouted.items()
            ],
            interrupted=interrupted,
        )

    # --- stages -------------------------------------------------------------------------------------------------------

    def _choose_rates(self) -> None:
        """The rates of each ground, and the one to tune at: near the knee of what needs no tuning."""
        for ground in self.grounds:
            if self.wanted.rates:
                self.grid[ground] = self.wanted.rates
            if self.wanted.tune_rate is not None:
                self.tuned_at[ground] = self.wanted.tune_rate
        unknown = [ground for ground in self.grounds if ground not in self.grid or ground not in self.tuned_at]
        for ground, attained in self._scout(unknown).items():
            found = rated.range_of(*extremes(attained))
            self.tuned_at.setdefault(ground, found.knee)
            self.grid.setdefault(ground, rated.between(found))

    def _scout(self, grounds: Sequence[Ground]) -> dict[Ground, dict[str, dict[float, float]]]:
        """Attainments of the scouts by rate, on the tuning load, until their range is known."""
        half = self.wanted.workers // 2
        names = [f"static-{half}p{self.wanted.workers - half}d", "aggregated[budget_tokens=2048]"]
        seed = self.wanted.tuning_seed
        self.scouted |= {ground: {name: {} for name in names} for ground in grounds}
        ready = self._readied([(ground, name, 1.0) for ground in grounds for name in names], "readying scouts")
        while True:
            next_rates = {g: rated.next_scout(*extremes(self.scouted[g])) for g in grounds}
            cases = [Case(g, name, rate, seed) for g, rate in next_rates.items() if rate is not None for name in names]
            if not cases:
                return {ground: self.scouted[ground] for ground in grounds}
            tasks = [self._scout_task(case, ready[case.ground, case.policy]) for case in cases]
            tried = ", ".join(f"{rate:g}" for rate in sorted({case.rate_scale for case in cases}))
            for number, attainment in self._done(tasks, f"scouting rate {tried}"):
                case = cases[number]
                self.scouted[case.ground][case.policy][case.rate_scale] = attainment

    def _tune(self) -> None:
        wanted = [(ground, name, self.tuned_at[ground]) for ground in self.grounds for name in self.wanted.policies]
        self.contenders |= self._readied(wanted, "tuning")

    def _readied(self, wanted: Sequence[tuple[Ground, str, float]], stage: str) -> dict[tuple[Ground, str], Contender]:
        tasks = [
            Tune(name, self.settings[ground.profile], self._spec(ground, rate, self.wanted.tuning_seed))
            for ground, name, rate in wanted
        ]
        made = dict(self._done(tasks, stage))
        return {(ground, name): made[number] for number, (ground, name, _) in enumerate(wanted)}

    def _bound(self, seed: int) -> None:
        keys = [(ground, rate, seed) for ground in self.grounds for rate in self.grid[ground]]
        tasks = [Limit(g, self.settings[g.profile], self._spec(g, rate, seed)) for g, rate, seed in keys]
        for number, limits in self._done(tasks, f"bounding seed {seed}"):
            self.limits[keys[number]] = limits

    def _grid_cases(self, seed: int) -> list[Case]:
        return [
            Case(ground, policy, rate, seed)
            for ground in self.grounds
            for rate in self.grid[ground]
            for policy in self.wanted.policies
        ]

    def _measure(self, cases: Iterable[Case], stage: str) -> None:
        todo = [case for case in cases if case not in self.rows]
        detailed = self.wanted.seeds[0]
        tasks = [self._task(case, self.contenders[case.ground, case.policy], case.seed == detailed) for case in todo]
        for number, (row, detail) in self._done(tasks, stage):
            self.rows[todo[number]] = row
            if detail is not None:
                self.details[todo[number]] = detail

    def _search(self) -> None:
        """Round by round, each searcher asks for one rate; every rate that was ever run counts for all targets."""
        wanted = self.wanted
        asking = [
            (ground, policy, seed, target)
            for ground in self.grounds
            for target in wanted.targets
            for policy in wanted.policies
            for seed in wanted.seeds
        ]
        while True:
            asked: dict[Case, None] = {}
            for ground, policy, seed, target in asking:
                rate = rated.next_rate(self._probed(ground, policy, seed), target, wanted.tolerance)
                if rate is not None:
                    asked[Case(ground, policy, rate, seed)] = None
            if not asked:
                break
            self._measure(asked, "searching the largest rates")
        self.found = [self._found(*one) for one in asking]

    def _found(self, ground: Ground, policy: str, seed: int, target: float) -> Found:
        probed = self._probed(ground, policy, seed)
        rate, kind, monotone = rated.largest(probed, target)
        row = self.rows.get(Case(ground, policy, rate, seed))
        return Found(
            policy=policy,
            trace=ground.trace,
            profile=ground.profile,
            seed=seed,
            target=target,
            rate_scale=rate,
            kind=kind,
            goodput_rps=row.goodput_rps if row else 0.0,
            goodput_rps_per_gpu=row.goodput_rps_per_gpu if row else 0.0,
            monotone=monotone,
            probed=sorted(probed.items()),
        )

    # --- parts --------------------------------------------------------------------------------------------------------

    def _probed(self, ground: Ground, policy: str, seed: int) -> dict[float, float]:
        return {
            case.rate_scale: row.attainment
            for case, row in self.rows.items()
            if (case.ground, case.policy, case.seed) == (ground, policy, seed)
        }

    def _task(self, case: Case, contender: Contender, detailed: bool = False) -> Measure:
        setting = self.settings[case.ground.profile]
        return Measure(case, contender, setting, self._spec(case.ground, case.rate_scale, case.seed), detailed)

    def _scout_task(self, case: Case, contender: Contender) -> Scout:
        setting = self.settings[case.ground.profile]
        return Scout(case, contender, setting, self._spec(case.ground, case.rate_scale, case.seed))

    def _spec(self, ground: Ground, rate_scale: float, seed: int) -> WorkloadSpec:
        return spec_for(self.specs[ground.trace], self.settings[ground.profile], rate_scale, seed)

    def _done(self, tasks: Sequence[Task], stage: str) -> Iterable[tuple[int, Any]]:
        if tasks:
            self.tell(stage, 0, len(tasks))
        for done, (number, result) in enumerate(self.work(tasks), 1):
            self.tell(stage, done, len(tasks))
            yield number, result

    def _prepared(self, ground: Ground, policy: str) -> Prepared:
        ready = self.contenders[ground, policy]
        return Prepared(
            policy=policy,
            trace=ground.trace,
            profile=ground.profile,
            prefill=ready.prefill,
            decode=ready.decode,
            tune_rate=self.tuned_at[ground],
            note=ready.note,
        )


def extremes(attained: dict[str, dict[float, float]]) -> tuple[dict[float, float], dict[float, float]]:
    """The worst and the best attainment at each rate that all have."""
    common = set.intersection(*(set(by_rate) for by_rate in attained.values()))
    rates = sorted(common)
    worst = {rate: min(by_rate[rate] for by_rate in attained.values()) for rate in rates}
    return worst, {rate: max(by_rate[rate] for by_rate in attained.values()) for rate in rates}


def telling_rate(rows: Sequence[Row]) -> float | None:
    """The rate at which the policies' attainments lie farthest apart, the lower of equal ones; None without a row."""
    by_rate: dict[float, list[float]] = {}
    for row in rows:
        by_rate.setdefault(row.rate_scale, []).append(row.attainment)
    return max(sorted(by_rate), key=lambda rate: max(by_rate[rate]) - min(by_rate[rate]), default=None)
