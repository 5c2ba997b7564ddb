"""What `dopd up` makes of a config: engine, model, ports, and which worker starts when and where."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from dopd.config import Config, load
from dopd.errors import ConfigError
from dopd.supervisor import cards, ports, resolve, stack
from dopd.supervisor.console import Console
from dopd.supervisor.model import ensure_model
from dopd.supervisor.ready import Cluster
from dopd.supervisor.state import StateDir


def config(**env: str) -> Config:
    return load(None, {"DOPD__GATEWAY__PORT": "0", "DOPD__CLUSTER__NATS_URL": "nats://x:1", **env})


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    state = StateDir(tmp_path)
    state.run.mkdir()
    return state


async def test_the_demo_is_emulated_whatever_is_installed() -> None:
    assert resolve.resolve(config(DOPD__ENGINE__KIND="vllm"), Console(), True, {}).engine.kind == "sim"


async def test_model_of_the_environment_wins_over_the_config() -> None:
    asked = config(DOPD__ENGINE__MODEL="a", DOPD__ENGINE__KIND="sim")
    assert resolve.resolve(asked, Console(), False, {"MODEL": "b"}).engine.model == "b"
    assert resolve.resolve(asked, Console(), False, {"MODEL": ""}).engine.model == "a"


async def test_engine_sim_of_make_is_obeyed_where_the_config_leaves_it_open() -> None:
    assert resolve.resolve(config(), Console(), False, {"ENGINE": "sim"}).engine.kind == "sim"
    asked = config(DOPD__ENGINE__KIND="vllm")
    assert resolve.resolve(asked, Console(), False, {"ENGINE": "sim"}).engine.kind == "vllm"


@pytest.mark.parametrize(
    ("variable", "words"),
    [("DOPD__POLICY__NAME", "'foo' is unknown"), ("DOPD__ENGINE__PROFILE", "unknown profile 'foo'")],
)
async def test_unknown_names_are_told_before_anything_starts(variable: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        resolve.resolve(config(**{variable: "foo"}), Console(), True, {})


async def test_a_static_split_sets_the_sizes_that_the_config_leaves_open() -> None:
    split = {"DOPD__POLICY__NAME": "static-3p5d"}
    assert resolve.resolve(config(**split), Console(), True, {}).cluster.sizes == (3, 5)
    asked = config(**split, DOPD__CLUSTER__PREFILL="3", DOPD__CLUSTER__DECODE="5")
    assert resolve.resolve(asked, Console(), True, {}).cluster.sizes == (3, 5)
    with pytest.raises(ConfigError, match="prefill = 4, decode = 5 contradicts static-3p5d; give prefill = 3"):
        resolve.resolve(config(**split, DOPD__CLUSTER__PREFILL="4", DOPD__CLUSTER__DECODE="5"), Console(), True, {})


async def test_a_policy_that_looks_into_the_future_cannot_serve() -> None:
    with pytest.raises(ConfigError, match="oracle-ratio looks into the future"):
        resolve.resolve(config(DOPD__POLICY__NAME="oracle-ratio"), Console(), True, {})


async def test_the_tiny_model_is_planned_with_its_own_profile_and_a_named_one_stays(
    state: StateDir, capsys: pytest.CaptureFixture[str]
) -> None:
    (state.root / "models" / "tiny-llama").mkdir(parents=True)
    (state.root / "models" / "tiny-llama" / "config.json").touch()
    tiny = config(DOPD__ENGINE__KIND="vllm")
    assert (await ensure_model(tiny, state, Console())).engine.profile == "cpu-tiny-llama"
    asked = config(DOPD__ENGINE__KIND="vllm", DOPD__ENGINE__PROFILE="mine.csv")
    assert (await ensure_model(asked, state, Console())).engine.profile == "mine.csv"
    assert "measure it" not in capsys.readouterr().out
    other = config(DOPD__ENGINE__KIND="vllm", DOPD__ENGINE__MODEL="a/b")
    assert (await ensure_model(other, state, Console())).engine == other.engine
    assert "policy dopd counts with profile h200-llama-3.1-8b-fp8-tp1" in capsys.readouterr().out


async def test_a_model_folder_that_is_not_there_is_told_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match="there is no folder /no/model"):
        resolve.resolve(config(DOPD__ENGINE__KIND="vllm"), Console(), False, {"MODEL": "/no/model"})


async def test_a_gateway_port_that_is_taken_is_an_error_with_its_variable(taken: int) -> None:
    with pytest.raises(ConfigError, match=f"port {taken} is taken on 127.0.0.1; .* set DOPD__GATEWAY__PORT"):
        resolve.resolve(config(DOPD__GATEWAY__PORT=str(taken)), Console(), True, {})


async def test_a_broker_port_that_is_taken_is_told_and_another_one_used(
    taken: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(resolve, "NATS_PORT", taken)
    resolved = resolve.resolve(config(DOPD__CLUSTER__NATS_URL=""), Console(), True, {})
    assert resolved.cluster.nats_url.startswith("nats://127.0.0.1:")
    assert resolved.cluster.nats_url != f"nats://127.0.0.1:{taken}"
    assert f"port {taken} is taken" in capsys.readouterr().out


async def test_a_named_broker_is_used_as_it_is() -> None:
    assert resolve.resolve(config(), Console(), True, {}).cluster.nats_url == "nats://x:1"


def test_a_port_is_kept_if_free_and_0_means_any(taken: int) -> None:
    assert not ports.is_free("127.0.0.1", taken)
    assert ports.this_or_free("127.0.0.1", taken) not in (0, taken)
    free = ports.this_or_free("127.0.0.1", 0)
    assert free > 0
    assert ports.this_or_free("127.0.0.1", free) == free


def names(stages: list[list[stack.Spec]]) -> list[list[str]]:
    return [[spec.name for spec in stage] for stage in stages]


def test_emulated_workers_start_together_with_neutral_ids_and_their_first_role(state: StateDir) -> None:
    (stage,) = stack.workers(config(DOPD__ENGINE__KIND="sim"), state, Cluster())
    assert [spec.name for spec in stage] == ["w1", "w2", "w3", "w4"]
    assert [spec.argv[2] for spec in stage] == ["dopd_prefill", "dopd_prefill", "dopd_decode", "dopd_decode"]
    assert all(spec.argv[3:] == ("--worker-id", spec.name) for spec in stage)


@pytest.mark.parametrize(
    ("prefill", "decode", "stages"),
    [
        ("2", "2", [["w1", "w3"], ["w2", "w4"]]),
        ("1", "3", [["w1", "w2"], ["w3", "w4"]]),
        ("0", "1", [["w1"]]),
    ],
)
def test_real_engines_start_two_at_a_time_one_of_each_role_first(
    state: StateDir, monkeypatch: pytest.MonkeyPatch, prefill: str, decode: str, stages: list[list[str]]
) -> None:
    monkeypatch.setattr(stack, "cards_for", lambda _: [])
    asked = config(DOPD__ENGINE__KIND="vllm", DOPD__CLUSTER__PREFILL=prefill, DOPD__CLUSTER__DECODE=decode)
    assert names(stack.workers(asked, state, Cluster())) == stages


def test_each_worker_gets_a_card_and_workers_that_share_one_start_one_by_one(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = config(DOPD__ENGINE__KIND="vllm")
    monkeypatch.setattr(stack, "cards_for", lambda _: ["0", "1", "2", "3"])
    alone = stack.workers(asked, state, Cluster())
    assert names(alone) == [["w1", "w3"], ["w2", "w4"]]
    assert [spec.env["CUDA_VISIBLE_DEVICES"] for stage in alone for spec in stage] == ["0", "2", "1", "3"]
    monkeypatch.setattr(stack, "cards_for", lambda _: ["0", "1"])
    assert names(stack.workers(asked, state, Cluster())) == [["w1"], ["w3"], ["w2"], ["w4"]]


def test_a_cards_memory_is_divided_among_its_workers() -> None:
    assert cards.memory_share(4, []) == 0.0
    assert cards.memory_share(4, ["0", "1", "2", "3"]) == 0.0
    assert cards.memory_share(4, ["0", "1"]) == 0.45
    assert cards.memory_share(4, ["0", "1", "2"]) == 0.45
    assert cards.memory_share(3, ["0"]) == 0.3


def test_visible_devices_limit_the_cards() -> None:
    assert cards.cards({"CUDA_VISIBLE_DEVICES": "3, 1"}) == ["3", "1"]
    assert cards.cards({"CUDA_VISIBLE_DEVICES": ""}) == []


def test_the_api_of_a_gateway_that_listens_everywhere_is_shown_with_a_loopback_address() -> None:
    asked = config(DOPD__GATEWAY__HOST="0.0.0.0", DOPD__GATEWAY__PORT="81")
    assert stack.gateway_url(asked) == "http://127.0.0.1:81"
