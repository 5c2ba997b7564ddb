"""A real Prometheus with the shipped configuration, and the queries of the shipped dashboards.

Consumes addresses of processes by compose service; produces answers to PromQL. Its services are found by addresses
instead of DNS, and it looks every second; all else is as in deploy/observability.
"""

import json
import math
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import pytest
import yaml

from dopd.runtime.lifeline import die_with
from dopd.supervisor.ports import this_or_free

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy/observability"
DASHBOARDS = sorted((FOLDER / "grafana/dashboards").glob("*.json"))
FETCH_S, START_S = 60.0, 20.0
Series = tuple[dict[str, str], list[tuple[float, float]]]
"""Labels, and (time, value)."""


@cache
def folder_of_programs() -> Path:
    """Where prometheus and promtool are. Skips where they are not and cannot be fetched."""
    try:
        script = ROOT / "deploy/setup/prometheus.sh"
        done = subprocess.run([script], capture_output=True, text=True, timeout=FETCH_S, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"prometheus could not be fetched within {FETCH_S:.0f} s: deploy/setup/prometheus.sh")
    if done.returncode:
        pytest.skip(done.stderr.strip())
    return Path(done.stdout.strip())


def promtool(*words: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """What it says."""
    command = [folder_of_programs() / "promtool", *words]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, cwd=FOLDER, check=False)


@dataclass(frozen=True, slots=True)
class Asked:
    """One query of a dashboard, with Grafana's variables still in it."""

    dashboard: str
    panel: str
    expr: str
    legend: str = ""

    @property
    def key(self) -> str:
        """Its name in a report."""
        return f"{self.dashboard} / {self.panel} / {self.legend}"

    def filled(self, interval: str, horizon: str) -> str:
        """As Grafana would send it."""
        return (
            self.expr.replace("$__rate_interval", interval).replace("${horizon}", horizon).replace("$horizon", horizon)
        )


def asked(file: Path) -> Iterator[Asked]:
    """Every query of a dashboard, its marks included."""
    page = json.loads(file.read_text())
    for panel in page["panels"]:
        for target in panel.get("targets", ()):
            yield Asked(page["uid"], panel["title"], target["expr"], target["legendFormat"])
    for mark in page["annotations"]["list"]:
        yield Asked(page["uid"], mark["name"], mark["expr"])


def selectors(expr: str) -> list[str]:
    """The series that an expression is about, with their labels."""
    return re.findall(r"\b(?:(?:dopd[a-z_]*|process|lmcache_mp)[_:][a-z0-9_:]+|up\b)(?:\{[^}]*\})?", expr)


def finite(series: Sequence[Series]) -> bool:
    """Whether there is a number anywhere in it."""
    return any(math.isfinite(value) for _, points in series for _, value in points)


class Prometheus:
    """`with Prometheus(folder, targets) as prometheus:`; `targets` are (host:port, …) by compose service."""

    def __init__(self, folder: Path, targets: Mapping[str, Sequence[str]], every: str = "1s") -> None:
        self.began_s = time.time()
        self._folder, self._targets, self._every = folder, targets, every
        self._address = f"127.0.0.1:{this_or_free('127.0.0.1', 0)}"
        self._client = httpx.Client(base_url=f"http://{self._address}", timeout=30.0)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Prometheus":
        file = self._folder / "prometheus.yml"
        file.write_text(yaml.safe_dump(self._config()))
        command = [
            folder_of_programs() / "prometheus", f"--config.file={file}", f"--storage.tsdb.path={self._folder}/data",
            f"--web.listen-address={self._address}", "--log.level=warn",
        ]  # fmt: skip
        with (self._folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log,
                preexec_fn=partial(die_with, os.getpid()),  # noqa: PLW1509 - one prctl call, no locks
            )  # fmt: skip
        end_s = time.monotonic() + START_S
        while not self._ready():
            assert self._process.poll() is None and time.monotonic() < end_s, (
                self._folder / "prometheus.log"
            ).read_text()
            time.sleep(0.1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(10.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10.0)

    def _config(self) -> dict[str, Any]:
        """The shipped one, with addresses where it asks DNS."""
        config: dict[str, Any] = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
        config["global"] = dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), self._every)
        config["rule_files"] = [str(FOLDER / "alerts.yml")]
        for job in config["scrape_configs"]:
            names = {name for each in job.pop("dns_sd_configs", ()) for name in each["names"]}
            found = [
                {"targets": [*self._targets[name]], "labels": {"__meta_dns_name": name}}
                for name in sorted(names & self._targets.keys())
            ]
            job["static_configs"] = found if names else [{"targets": [self._address]}]
        return config

    def _ready(self) -> bool:
        try:
            return self._client.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def sees_all(self) -> bool:
        """Whether every target has been read twice: Prometheus takes seconds to begin."""
        every = sum(len(addresses) for addresses in self._targets.values()) + 1
        return len(self.now("count_over_time(up[1m]) > 1 and up == 1")) == every

    def get(self, path: str, **words: str | float) -> Any:
        """The data of an answer. An error is an assertion with its text."""
        answer = self._client.post(path, data=words) if words else self._client.get(path)
        told = answer.json()
        assert told["status"] == "success", f"{words}: {told.get('error')}"
        return told["data"]

    def over(self, expr: str, step_s: float = 1.0, since_s: float | None = None) -> list[Series]:
        """What a panel would show, from the start until now."""
        found = self.get(
            "/api/v1/query_range", query=expr, start=since_s or self.began_s, end=time.time(), step=step_s
        )  # fmt: skip
        return [
            (one["metric"], [(at, float(value)) for at, value in one["values"]]) for one in found["result"]
        ]  # fmt: skip

    def now(self, expr: str) -> list[tuple[dict[str, str], float]]:
        """What it is at this moment."""
        found = self.get("/api/v1/query", query=expr)
        return [(one["metric"], float(one["value"][1])) for one in found["result"]]
