"""The client's spans where OpenTelemetry's environment wants them. Consumes a `Run`; produces OTLP in JSON.

After the run, so that it costs the load nothing. The system's spans come from the system, under the same traces.
"""

import os
import urllib.request
from pathlib import Path

from dopd.errors import LoadError
from dopd.obs.span_file import SCHEME
from dopd_loadgen.model import Run
from dopd_loadgen.tracing import client_spans

AT_ONCE, TIMEOUT_S = 1000, 10.0


def collector() -> str:
    """Its URL for traces, or `file:` and a folder; empty when none is named, or tracing is off."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ""
    whole, base = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"), os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    if not whole and base and base.startswith(SCHEME):
        return base
    return whole or (f"{base.rstrip('/')}/v1/traces" if base else "")


def send_client_spans(run: Run, url: str) -> None:
    """To a collector, or to a file in a folder. Raises LoadError when it does not take them."""
    if url.startswith(SCHEME):
        _write(run, Path(url.removeprefix(SCHEME).removeprefix("//")) / "loadgen-client.jsonl")
        return
    pairs = (pair.partition("=") for pair in os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", "").split(",") if pair)
    headers = {key.strip(): value.strip() for key, _, value in pairs} | {"Content-Type": "application/json"}
    for body in client_spans(run, AT_ONCE):
        try:
            request = urllib.request.Request(url, body, headers)
            with urllib.request.urlopen(request, timeout=TIMEOUT_S):
                pass
        except (OSError, ValueError) as error:
            raise LoadError(url, f"the collector did not take the client's spans: {error}") from error


def _write(run: Run, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.writelines(body + b"\n" for body in client_spans(run, AT_ONCE))
    except OSError as error:
        raise LoadError(str(path), f"cannot be written: {error.strerror or error}") from error
