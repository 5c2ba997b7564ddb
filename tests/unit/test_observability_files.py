"""What is shipped in deploy/observability, against the metrics that there are: names, labels, texts, bucket edges."""

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from dopd.config import SloConfig
from dopd.obs.metric_table import BY_NAME, TPOT_S, TTFT_S

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/observability"
DASHBOARDS = sorted((FOLDER / "grafana/dashboards").glob("*.json"))
ALERTS = yaml.safe_load((FOLDER / "alerts.yml").read_text())
RULES: list[dict[str, Any]] = [rule for group in ALERTS["groups"] for rule in group["rules"]]
CORE = {"timeseries", "stat", "state-timeline", "heatmap", "table", "row"}
TARGET = {"job", "instance"}
SELECTOR = re.compile(r"\b(dopd_[a-z0-9_]+)(?:\{([^}]*)\})?")
BY = re.compile(r"\bby \(([^)]*)\)")


def panels(file: Path) -> list[dict[str, Any]]:
    return [panel for panel in json.loads(file.read_text())["panels"] if panel["type"] != "row"]


def queries() -> list[str]:
    """All that is asked, by dashboards and rules."""
    found = [target["expr"] for file in DASHBOARDS for panel in panels(file) for target in panel["targets"]]
    return found + [rule["expr"] for rule in RULES]


def test_the_dashboards_are_what_their_source_makes() -> None:
    command = [sys.executable, FOLDER / "source/render.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_each_panel_says_what_it_is_in_which_unit_and_asks_a_source_that_is_provisioned(file: Path) -> None:
    page = json.loads(file.read_text())
    sources = yaml.safe_load((FOLDER / "grafana/provisioning/datasources/datasources.yaml").read_text())["datasources"]
    uids = {source["uid"] for source in sources}
    assert page["uid"] == file.stem and page["description"]
    for panel in panels(file):
        assert panel["type"] in CORE and panel["description"] and panel["fieldConfig"]["defaults"]["unit"], panel
        assert {panel["datasource"]["uid"], *(target["datasource"]["uid"] for target in panel["targets"])} <= uids
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in page["panels"]]
    assert len(set(places)) == len(places)


def test_every_name_and_label_that_is_asked_for_is_exported() -> None:
    assert len(queries()) > 100
    for expr in queries():
        for name, matchers in SELECTOR.findall(expr):
            stem = name if name in BY_NAME else re.sub("_(bucket|count|sum)$", "", name)
            assert stem in BY_NAME, f"{name} in {expr}"
            labels = set(re.findall(r'([a-z_]+)\s*[=!]~?"', matchers))
            assert labels <= {*BY_NAME[stem].labels, *TARGET}, expr


def test_series_are_grouped_by_labels_that_they_have() -> None:
    for expr in queries():
        known = {label for name, _ in SELECTOR.findall(expr) if name in BY_NAME for label in BY_NAME[name].labels}
        grouped = {label.strip() for labels in BY.findall(expr) for label in labels.split(",")}
        assert grouped <= known | TARGET | {"le"}, expr


def test_each_alert_says_what_is_wrong_what_that_means_and_what_to_do() -> None:
    alerts = [rule for rule in RULES if "alert" in rule]
    assert len({rule["alert"] for rule in alerts}) == len(alerts) >= 15
    for rule in alerts:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"].keys() == {"summary", "description", "action"}


def test_the_document_has_every_alert_and_every_dashboard() -> None:
    text = (ROOT / "docs/dashboards.md").read_text()
    assert set(re.findall(r"`(Dopd\w+)`", text)) == {rule["alert"] for rule in RULES if "alert" in rule}
    assert set(re.findall(r"\(dashboards/(.+)\.png\)", text)) == {file.stem for file in DASHBOARDS}


def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    cases = yaml.safe_load((FOLDER / "alerts.test.yml").read_text())["tests"]
    told: dict[str, set[bool]] = {}
    for check in [check for case in cases for check in case["promql_expr_test"]]:
        name = re.findall(r'alertname="(\w+)"', check["expr"])[0]
        told.setdefault(name, set()).add(bool(check["exp_samples"]))
    assert told == {rule["alert"]: {True, False} for rule in RULES if "alert" in rule}


def test_latency_buckets_have_an_edge_at_the_targets_and_reach_far_to_both_sides() -> None:
    slo = SloConfig()
    assert slo.ttft_s in TTFT_S and (TTFT_S[0], TTFT_S[-1]) == (0.01, 60.0)
    assert slo.tpot_s in TPOT_S and (TPOT_S[0], TPOT_S[-1]) == (0.002, 1.0)
    for edges in (TTFT_S, TPOT_S):
        assert max(after / before for before, after in pairwise(edges)) <= 3.0


def test_prometheus_looks_for_the_services_that_the_compose_files_have() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    asked = {
        name for job in config["scrape_configs"] for each in job.get("dns_sd_configs", ()) for name in each["names"]
    }
    files = sorted((ROOT / "deploy/compose").glob("compose*.yaml"))
    services = {name for file in files for name in yaml.safe_load(file.read_text())["services"]}
    assert asked <= services, asked - services
