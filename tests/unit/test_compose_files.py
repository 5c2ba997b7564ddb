"""The compose files: the rules that hold for every service, read as YAML; and each combination of files and profiles as
`docker compose config` takes it, where there is a compose v2."""

import json
import os
import re
import subprocess
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.compose.docker import compose_program

FOLDER = Path(__file__).parents[2] / "deploy/compose"
OVERLAYS = ("", "compose.cpu.yaml", "compose.gpu.yaml", "compose.tls.yaml")
FILES = ("compose.yaml", "compose.observability.yaml", *OVERLAYS[1:])
PROFILES = ("", "load", "operator", "observability", "four-gpus", "emulated", "*")
USERS = ("GATEWAY", "WORKER", "PLANNER", "FORECASTER", "KV_STORE", "CLIENT", "OPERATOR")
COMMANDS = {"loadgen", "operator"}
"""Services that are run for once: they end, and nobody asks whether they are healthy."""
WITHOUT_A_SHELL = {"otel-collector"}
"""Nothing in the image could ask."""
PUBLISHED = {
    "gateway": [
        "${DOPD_HTTP_BIND:-127.0.0.1}:${DOPD_HTTP_PORT:-8000}:8000",
        "127.0.0.1:${DOPD_OPERATOR_PORT:-9464}:9464",
    ],
    "grafana": ["127.0.0.1:${DOPD_GRAFANA_PORT:-3000}:3000"],
    "jaeger": ["127.0.0.1:${DOPD_JAEGER_PORT:-16686}:16686"],
}


def services(name: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load((FOLDER / name).read_text())["services"]
    return found


BASE = services("compose.yaml")
NEW = {
    f"{name}:{service}": what
    for name in FILES
    for service, what in services(name).items()
    if (name == "compose.yaml" or service not in BASE) and "extends" not in what
}
"""All services where they are first defined; the overlays change some of them."""


@pytest.mark.parametrize("name", NEW)
def test_a_service_is_confined_and_comes_back_and_is_given_time_to_end(name: str) -> None:
    service, what = name.partition(":")[2], NEW[name]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", what["user"]), "an ordinary user"
    assert what["read_only"] is True and what["cap_drop"] == ["ALL"] and "cap_add" not in what
    assert what["security_opt"] == ["no-new-privileges:true"] and "privileged" not in what
    assert what["restart"] == ("no" if service in COMMANDS else "unless-stopped")
    assert re.fullmatch(r"\d+s", what["stop_grace_period"])
    assert what["logging"]["options"]["max-size"], "a log that grows without bound fills the disk"


@pytest.mark.parametrize("name", NEW)
def test_healthy_means_something(name: str) -> None:
    service, check = name.partition(":")[2], NEW[name]["healthcheck"]
    if service in COMMANDS | WITHOUT_A_SHELL:
        assert check == {"disable": True}
    else:
        assert check["test"][0] == "CMD" and re.search(r"ready|health|:14269/$", " ".join(check["test"]))
        assert {"interval", "timeout", "retries"} <= check.keys()


@pytest.mark.parametrize("name", NEW)
def test_an_image_is_pinned_and_can_be_replaced(name: str) -> None:
    match = re.fullmatch(r"\$\{DOPD_[A-Z_]*IMAGE:-[a-z/-]+:(.+)\}", NEW[name]["image"])
    assert match is not None and match[1] != "latest" and re.search(r"\d", match[1])


@pytest.mark.parametrize("file", FILES)
def test_only_the_gateway_and_what_people_look_at_has_ports(file: str) -> None:
    for service, what in services(file).items():
        assert what.get("ports", []) == (PUBLISHED.get(service, []) if file in FILES[:2] else []), service


def test_a_drain_fits_into_the_time_before_a_container_is_killed() -> None:
    from dopd.config import WorkerConfig

    for service in ("gateway", "prefill-worker", "decode-worker"):
        assert int(BASE[service]["stop_grace_period"][:-1]) >= 2 * WorkerConfig().stop_grace_s + 5.0, service


def test_the_broker_is_on_the_inner_network_alone() -> None:
    assert BASE["nats"]["networks"] == ["bus"]
    assert yaml.safe_load((FOLDER / "compose.yaml").read_text())["networks"]["bus"] == {"internal": True}


def test_each_service_has_the_password_of_its_own_user_alone() -> None:
    """But the broker, which has them all."""
    for service, what in BASE.items():
        named = set(re.findall(r"\$\{DOPD_NATS_([A-Z_]+)_PASSWORD", json.dumps(what)))
        assert len(named) <= 1 or (service == "nats" and named == set(USERS)), service


def test_the_example_of_an_env_file_names_all_that_can_be_set() -> None:
    used = {name for file in FILES for name in re.findall(r"\$\{([A-Z_]+)", (FOLDER / file).read_text())}
    told = set(re.findall(r"^#([A-Z_]+)=", (FOLDER / ".env.example").read_text(), re.MULTILINE))
    assert told == {name for name in used if not name.endswith("_PASSWORD")}
    assert {name for name in used if name.endswith("_PASSWORD")} == {f"DOPD_NATS_{user}_PASSWORD" for user in USERS}


def test_the_dockerfile_needs_no_front_end_from_a_registry_and_every_base_can_be_replaced() -> None:
    lines = (FOLDER / "Dockerfile").read_text().splitlines()
    assert not any(re.match(r"#\s*syntax\s*=", line) for line in lines)
    stages = {line.split()[-1] for line in lines if line.startswith("FROM ")} | {"scratch"}
    for base in (line.split()[1] for line in lines if line.startswith("FROM ")):
        assert base in stages or re.fullmatch(r"\$\{[A-Z_]*BASE\}", base), base
    assert not any(":latest" in line for line in lines)


# --- as compose takes them --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compose() -> list[str]:
    return compose_program()


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    passwords = "".join(f"DOPD_NATS_{user}_PASSWORD=p1\n" for user in USERS)
    file = tmp_path / "env"
    file.write_text((FOLDER / ".env.example").read_text() + passwords)
    return file


def run(compose: list[str], env_file: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`docker compose …` beside the files, with nothing of this environment that could stand in for the file's."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("DOPD", "COMPOSE", "MODEL"))}
    return subprocess.run(
        [*compose, "--env-file", str(env_file), *words],
        cwd=FOLDER,
        env=env,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def resolved(compose: list[str], env_file: Path, overlay: str, *words: str) -> dict[str, dict[str, Any]]:
    """The services as compose puts them together."""
    files = ["-f", "compose.yaml", *(["-f", overlay] if overlay else [])]
    told = run(compose, env_file, *files, *words, "config", "--format", "json").stdout
    found: dict[str, dict[str, Any]] = json.loads(told)["services"]
    return found


@pytest.mark.parametrize(("overlay", "profile"), list(product(OVERLAYS, PROFILES)))
def test_compose_takes_every_combination(compose: list[str], env_file: Path, overlay: str, profile: str) -> None:
    files = ["-f", "compose.yaml", *(["-f", overlay] if overlay else [])]
    done = run(compose, env_file, *files, *(["--profile", profile] if profile else []), "config", "-q")
    assert done.returncode == 0 and not done.stderr, done.stderr


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_image_that_nobody_pulls_is_built_by_one_service(
    compose: list[str], env_file: Path, overlay: str
) -> None:
    found = resolved(compose, env_file, overlay)
    ours = {what["image"] for what in found.values() if what["image"].startswith("dopd/")}
    built = [what["image"] for what in found.values() if "build" in what]
    assert sorted(ours) == sorted(built)


def test_with_tls_whoever_has_a_user_of_the_broker_trusts_its_ca(compose: list[str], env_file: Path) -> None:
    found = resolved(compose, env_file, "compose.tls.yaml", "--profile", "*")
    users = {name for name, what in found.items() if "DOPD__CLUSTER__NATS_URL" in what.get("environment", {})}
    trusting = {name for name, what in found.items() if "DOPD__CLUSTER__NATS_CA_FILE" in what.get("environment", {})}
    assert users == trusting and len(users) == 7
    assert found["nats"]["command"] == ["-c", "/etc/dopd-nats/tls.conf"]


def test_a_key_that_is_misspelt_is_refused(compose: list[str], env_file: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("services: { gateway: { helthcheck: { disable: true } } }\n")
    done = run(compose, env_file, "-f", "compose.yaml", "-f", str(wrong), "config", "-q")
    assert done.returncode != 0 and "helthcheck" in done.stderr


def test_without_passwords_it_says_how_to_get_them(compose: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    done = run(compose, tmp_path / "empty", "config", "-q")
    assert done.returncode != 0 and "make compose-up" in done.stderr


@pytest.mark.parametrize("overlay", ["compose.cpu.yaml", "compose.gpu.yaml"])
def test_real_engines_share_one_lmcache_and_nothing_emulated_starts(
    compose: list[str], env_file: Path, overlay: str
) -> None:
    found = resolved(compose, env_file, overlay)
    assert "kv-store" not in found
    for name in ("prefill-worker", "decode-worker"):
        worker = found[name]
        assert worker["environment"]["DOPD__ENGINE__KIND"] == "vllm"
        assert worker["environment"]["DOPD__ENGINE__LMCACHE_HOST"] == "lmcache"
        assert worker["environment"]["DOPD__CLUSTER__NATS_URL"].startswith("nats://worker:")
        assert worker["depends_on"].keys() == {"nats", "lmcache"}
        assert worker["read_only"] and worker["cap_drop"] == ["ALL"]
        shared = [volume["target"] for volume in worker["volumes"] if volume["source"] == "kv-shm"]
        assert shared == ["/dev/shm"]
    models = {
        found[name]["environment"]["DOPD__ENGINE__MODEL"] for name in ("gateway", "prefill-worker", "decode-worker")
    }
    assert len(models) == 1, "the model's name is part of LMCache's keys"
