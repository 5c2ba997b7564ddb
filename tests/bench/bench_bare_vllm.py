"""The same load at bare vLLM and through DOPD (one prefill, one decode worker), tiny model on the CPU, in one table.

Two engines, LMCache and a gateway share the cores that bare vLLM has for itself: this compares what the load generator
says of either, not the systems. On GPUs each engine has its own.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from dopd import config as configs
from dopd.supervisor.stack import gateway_url
from dopd_loadgen.cli import main
from tests.e2e.running import Running
from tests.e2e.vllm.bare import bare_vllm
from tests.nats_server import server_binary

pytestmark = [
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]
LOAD = ["--arrivals", "poisson:rate=2", "--isl", "lognormal:mean=300,p50=200", "--max-isl", "1500", "--osl", "40"]
SPAN = ["--duration", "90", "--warmup", "15", "--goodput", "ttft:2000", "tpot:80", "--ready-check-timeout-sec", "400"]


def load(url: str, label: str, folder: Path) -> None:
    out = ["--label", label, "--result-dir", str(folder / label), "--quiet"]
    assert main(["run", "--url", url, *LOAD, *SPAN, *out]) == 0


def test_bare_vllm_and_dopd_side_by_side(tmp_path: Path) -> None:
    from dopd.engine.vllm.tiny_model import ensure_tiny_model

    server_binary()
    model = ensure_tiny_model(tmp_path / "tiny-llama")
    with bare_vllm(model, tmp_path / "vllm.log") as url:
        load(url, "bare-vllm", tmp_path)
    settings = {
        "DOPD__CLUSTER__STATE_DIR": str(tmp_path / "state"),
        "DOPD__CLUSTER__PREFILL": "1",
        "DOPD__CLUSTER__DECODE": "1",
        "DOPD__GATEWAY__PORT": "0",
        "DOPD__ENGINE__KIND": "vllm",
        "DOPD__POLICY__NAME": "simple",
        "MODEL": str(model),
    }
    with Running(["dopd.cli", "up"], tmp_path / "state", settings) as up:
        up.wait_for("Ctrl-C stops everything", 400.0)
        load(gateway_url(configs.load(up.state.config_file, env={})), "dopd-1p1d", tmp_path)
        up.note()
        up.interrupt()
        up.code(60.0)
    folders = [str(tmp_path / name) for name in ("bare-vllm", "dopd-1p1d")]
    assert main(["report", *folders, "-o", str(tmp_path / "both")]) == 0
    print(f"pictures and page: {tmp_path / 'both'}")
