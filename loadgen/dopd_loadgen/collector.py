"""The client's spans at the collector that OpenTelemetry's environment names. Consumes a `Run`; produces OTLP in JSON.

After the run, so that it costs the load nothing. The system's spans come from the system, under the same traces.
"""

import os
import urllib.request

from dopd.errors import LoadError
from dopd_loadgen.model import Run
from dopd_loadgen.tracing import client_spans

AT_ONCE, TIMEOUT_S = 1000, 10.0


def collector() -> str:
    """Its URL for traces; empty when none is named, or tracing is off."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ""
    whole, base = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"), os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    return whole or (f"{base.rstrip('/')}/v1/traces" if base else "")


def send_client_spans(run: Run, url: str) -> None:
    """Raises LoadError when it does not take them."""
    pairs = (pair.partition("=") for pair in os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", "").split(",") if pair)
    headers = {key.strip(): value.strip() for key, _, value in pairs} | {"Content-Type": "application/json"}
    for body in client_spans(run, AT_ONCE):
        try:
            request = urllib.request.Request(url, body, headers)
            with urllib.request.urlopen(request, timeout=TIMEOUT_S):
                pass
        except (OSError, ValueError) as error:
            raise LoadError(url, f"the collector did not take the client's spans: {error}") from error
