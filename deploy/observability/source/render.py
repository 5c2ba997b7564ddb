"""`python deploy/observability/source/render.py [--check]`: the dashboards as Grafana's JSON.

Consumes the `DASHBOARD` of each module beside it; produces `../grafana/dashboards/UID.json`. With `--check` it writes
nothing, and fails where a file is not what it would write.
"""

import json
import sys
from pathlib import Path
from typing import Any

import kv
import planner
import processes
import traffic
import workers
from panel import Dashboard, Panel, Row

FOLDER = Path(__file__).parents[1] / "grafana/dashboards"
SOURCE = {"type": "prometheus", "uid": "prometheus"}
DASHBOARDS = (traffic.DASHBOARD, workers.DASHBOARD, planner.DASHBOARD, kv.DASHBOARD, processes.DASHBOARD)
HEIGHTS = {"stat": 4, "state-timeline": 8, "timeseries": 8, "heatmap": 8, "table": 8}
FLIPS = 'sum by (outcome) (increase(dopd_role_changes_total{outcome="accepting"}[$__rate_interval])) > 0'


def dashboard(one: Dashboard) -> dict[str, Any]:
    """The whole page."""
    return {
        "uid": one.uid,
        "title": one.title,
        "description": one.says,
        "tags": ["dopd"],
        "schemaVersion": 39,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "links": [{"type": "dashboards", "title": "DOPD", "tags": ["dopd"], "keepTime": True}],
        "annotations": {"list": [_flips()]},
        "templating": {"list": [_variable(name, query) for name, query in one.variables]},
        "panels": _panels(one.rows),
    }


def _flips() -> dict[str, Any]:
    """A mark in every picture where a worker took another role."""
    about = {"name": "role changes", "enable": True, "iconColor": "purple", "titleFormat": "role change"}
    return {**about, "datasource": SOURCE, "expr": FLIPS, "step": "10s"}


def _variable(name: str, query: str) -> dict[str, Any]:
    about = {"name": name, "type": "query", "refresh": 2, "sort": 3, "datasource": SOURCE}
    return {**about, "query": {"query": query, "refId": name}}


def _panels(rows: tuple[Row, ...]) -> list[dict[str, Any]]:
    """In lines of 24 columns, numbered from 1."""
    found: list[dict[str, Any]] = []
    top = 0
    for row in rows:
        place = {"x": 0, "y": top, "w": 24, "h": 1}
        found.append({"id": len(found) + 1, "type": "row", "title": row.title, "gridPos": place, "panels": []})
        top, left, tallest = top + 1, 0, 0
        for panel in row.panels:
            if left + panel.width > 24:
                top, left, tallest = top + tallest, 0, 0
            height = HEIGHTS[panel.kind]
            found.append(_panel(panel, len(found) + 1, {"x": left, "y": top, "w": panel.width, "h": height}))
            left, tallest = left + panel.width, max(tallest, height)
        top += tallest
    return found


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.says,
        "gridPos": place,
        "datasource": SOURCE,
        "targets": [_target(panel, n) for n in range(len(panel.queries))],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": _band(panel)},
        "options": _options(panel),
    }


def _target(panel: Panel, place: int) -> dict[str, Any]:
    query = panel.queries[place]
    target: dict[str, Any] = {"refId": chr(ord("A") + place), "datasource": SOURCE, "expr": query.expr}
    target["legendFormat"] = query.legend or ("{{le}}" if panel.kind == "heatmap" else "__auto")
    if panel.kind in ("heatmap", "table"):
        target["format"] = panel.kind
    if panel.kind in ("stat", "table"):
        target["instant"] = True
    return target


def _defaults(panel: Panel) -> dict[str, Any]:
    found: dict[str, Any] = {"unit": panel.unit}
    found |= {key: value for key, value in (("min", panel.least), ("max", panel.most)) if value is not None}
    if panel.names:
        texts = {str(n): {"text": text, "color": color} for n, (text, color) in enumerate(panel.names, 1)}
        found["mappings"] = [{"type": "value", "options": texts}]
    if panel.kind == "timeseries":
        found["custom"] = {
            "axisLabel": panel.axis,
            "drawStyle": "bars" if panel.bars else "line",
            "fillOpacity": 60 if panel.bars else 20 if panel.stack else 0,
            "stacking": {"mode": "normal" if panel.stack else "none"},
        }
    return found


def _band(panel: Panel) -> list[dict[str, Any]]:
    if panel.band is None:
        return []
    low, high = panel.band
    fill = [{"id": "custom.fillBelowTo", "value": low}, {"id": "custom.lineWidth", "value": 0}]
    return [
        {"matcher": {"id": "byName", "options": high}, "properties": fill},
        {"matcher": {"id": "byName", "options": low}, "properties": fill[1:]},
    ]


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "heatmap":
        return {"calculate": False, "yAxis": {"unit": panel.unit}, "color": {"scheme": "Blues"}}
    if panel.kind == "stat":
        return {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "none", "colorMode": "none"}
    if panel.kind == "state-timeline":
        return {"mergeValues": True, "showValue": "auto", "legend": {"showLegend": False}}
    if panel.kind == "table":
        return {"showHeader": True}
    return {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}


def text(one: Dashboard) -> str:
    """As it stands in the file: a line for each panel, so that changes can be read."""
    whole = dashboard(one)
    panels = ",\n".join(json.dumps(panel, ensure_ascii=False) for panel in whole.pop("panels"))
    head = json.dumps(whole, indent=1, ensure_ascii=False).removesuffix("\n}")
    return f'{head},\n "panels": [\n{panels}\n ]\n}}\n'


def main(words: list[str]) -> int:
    """Write, or with `--check` compare."""
    stale = []
    for one in DASHBOARDS:
        file, wanted = FOLDER / f"{one.uid}.json", text(one)
        if "--check" not in words:
            file.write_text(wanted)
        elif not file.exists() or file.read_text() != wanted:
            stale.append(file.name)
    if stale:
        print(f"not as in the source: {', '.join(stale)}; run {Path(__file__).name}", file=sys.stderr)
    return bool(stale)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
