"""The `dopd` command: its table, its errors, and what it must not import."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from dopd import cli
from dopd.config import Config, dump
from dopd.supervisor import where
from dopd_planner import roles_cli
from dopd_proto.control import RolesReply, RolesRequest, WorkerRow


@pytest.mark.parametrize("target", [target for target, _ in cli.COMMANDS.values()])
def test_every_command_of_the_table_exists(target: str) -> None:
    module, _, function = target.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_help_has_one_line_for_each_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in cli.COMMANDS:
        assert sum(line.startswith(f"  dopd {name} ") for line in lines) == 1


def test_without_a_command_the_help_is_shown_and_the_exit_code_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "dopd up" in capsys.readouterr().out


@pytest.mark.parametrize(("typed", "hint"), [("rolse", "`dopd roles`"), ("zzz", "`dopd --help`")])
def test_an_unknown_command_gets_a_suggestion(typed: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([typed]) == 2
    assert hint in capsys.readouterr().err


def test_config_prints_what_file_and_environment_come_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.toml"
    file.write_text("[slo]\nttft_s = 1.5\n")
    monkeypatch.setenv("DOPD__SLO__TPOT_S", "0.02")
    assert cli.main(["config", "--config", str(file)]) == 0
    assert json.loads(capsys.readouterr().out)["slo"] == {"ttft_s": 1.5, "tpot_s": 0.02}


def test_config_does_not_print_the_brokers_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOPD__CLUSTER__NATS_URL", "nats://gateway:sekrit@nats:4222")
    assert cli.main(["config"]) == 0
    printed = capsys.readouterr().out
    assert '"nats://nats:4222"' in printed
    assert "sekrit" not in printed


@pytest.mark.parametrize("command", ["config", "up", "down", "status", "clean", "roles"])
def test_a_wrong_config_is_one_line_and_exit_code_2(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOPD__SLO__TTFTS", "1")
    assert cli.main([command]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"dopd {command}: DOPD__SLO__TTFTS: slo.ttfts: unknown; did you mean 'ttft_s'?")


def test_the_supervisor_imports_neither_torch_nor_vllm() -> None:
    code = "import sys, dopd.supervisor.up; print({'torch', 'vllm', 'lmcache', 'transformers'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert shown.stdout.strip() == "set()"


ROW = WorkerRow(
    worker_id="w1",
    role="decode",
    phase="serving",
    epoch=(3 << 32) | 7,
    incarnation="i-1",
    running=2,
    waiting=0,
    kv_usage=0.256,
    pinned="decode",
    gpus=2,
    engine="h100-tp2",
)


def test_roles_are_shown_as_a_table_with_the_epoch_as_term_and_sequence() -> None:
    headings, row, total = roles_cli.table([ROW]).splitlines()
    assert headings.split() == list(roles_cli.HEADINGS)
    assert row.split() == ["w1", "decode", "serving", "3.7", "i-1", "2", "0", "26%", "2", "h100-tp2", "decode"]
    assert total == "1 workers, 2 GPUs"


@pytest.mark.parametrize(
    ("accepting_s", "drained_s", "words"),
    [
        (0.25, 1.5, "w1 takes decode work after 0.250 s, old work drained after 1.500 s"),
        (0.25, None, "old work still draining"),
        (None, None, "w1 does not show the role decode yet"),
    ],
)
def test_a_role_change_is_told_by_its_read_back(accepting_s: float | None, drained_s: float | None, words: str) -> None:
    request = RolesRequest(action="set", worker_id="w1", role="decode")
    reply = RolesReply(workers=(ROW,), accepting_s=accepting_s, drained_s=drained_s)
    assert words in roles_cli.read_back(request, reply)


def test_the_broker_is_the_given_one_then_the_configured_then_the_running_then_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOPD__CLUSTER__STATE_DIR", str(tmp_path))
    assert where.broker(None, None) == ("nats://127.0.0.1:4222", "")
    (tmp_path / "run").mkdir()
    running = Config(cluster=Config().cluster.__class__(nats_url="nats://running:1", nats_ca_file="theirs"))
    (tmp_path / "run" / "config.json").write_bytes(dump(running))
    assert where.broker(None, None) == ("nats://running:1", "theirs")
    monkeypatch.setenv("DOPD__CLUSTER__NATS_URL", "nats://configured:1")
    assert where.broker(None, None) == ("nats://configured:1", "")
    monkeypatch.setenv("DOPD__CLUSTER__NATS_CA_FILE", "ours")
    assert where.broker("nats://given:1", None) == ("nats://given:1", "ours")


def test_without_a_broker_roles_says_so_and_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["roles", "--nats", "nats://127.0.0.1:1"]) == 1
    assert "nats://127.0.0.1:1" in capsys.readouterr().err
