"""The config: defaults, file, environment, and errors that say where, which key and what to do."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dopd.config import Config, dump, load
from dopd.errors import ConfigError

ROOT = Path(__file__).parents[2]


def written(tmp_path: Path, text: str, name: str = "a.toml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def error_of(path: Path | None, env: dict[str, str]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(path, env)
    return caught.value


def test_without_file_and_environment_every_key_has_its_default() -> None:
    assert load(None, {}) == Config()


def test_a_file_changes_only_what_it_names(tmp_path: Path) -> None:
    config = load(written(tmp_path, "[slo]\nttft_s = 1\n"), {})
    assert (config.slo.ttft_s, config.slo.tpot_s, config.gateway) == (1.0, 0.08, Config().gateway)


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    assert load(written(tmp_path, "[slo]\nttft_s = 1.0\n"), {"DOPD__SLO__TTFT_S": "0.5"}).slo.ttft_s == 0.5


def test_environment_values_are_read_as_toml_or_taken_as_text() -> None:
    env = {
        "DOPD__PLANNER__DRY_RUN": "true",
        "DOPD__ENGINE__MODEL": "org/some-model",
        "DOPD__GATEWAY__MAX_WAITING": "1_000",
        "DOPD__POLICY__PARAMS": "{ share = 0.5 }",
    }
    config = load(None, env)
    assert config.planner.dry_run is True
    assert config.engine.model == "org/some-model"
    assert config.gateway.max_waiting == 1000
    assert config.policy.params == {"share": 0.5}


@pytest.mark.parametrize("text", ["405", "true", "[1]", "1.5"])
def test_a_text_key_takes_a_value_that_looks_like_another_type(text: str) -> None:
    assert load(None, {"DOPD__ENGINE__MODEL": text}).engine.model == text


def test_a_nested_key_can_be_set_from_the_environment() -> None:
    assert load(None, {"DOPD__POLICY__PARAMS__SHARE": "0.25"}).policy.params == {"share": 0.25}


def test_what_is_dumped_is_loaded_back_as_it_was(tmp_path: Path) -> None:
    config = load(None, {"DOPD__POLICY__PARAMS__SHARE": "0.25", "DOPD__CLUSTER__PREFILL": "3"})
    path = tmp_path / "config.json"
    path.write_bytes(dump(config))
    assert load(path, {}) == config


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("[slo]\nttfts = 1\n", "slo.ttfts", "did you mean 'ttft_s'?"),
        ("[slo]\nzzz = 1\n", "slo.zzz", "known here: ttft_s, tpot_s"),
        ("[sloo]\n", "sloo", "did you mean 'slo'?"),
        ("[slo]\nttft_s = 'fast'\n", "slo.ttft_s", "Expected `float`"),
        ("[slo]\nttft_s = 0\n", "slo.ttft_s", "> 0"),
        ("[engine]\nkind = 'tpu'\n", "engine.kind", "tpu"),
        ("[cluster]\nprefill = 0\ndecode = 0\n", "cluster", "give prefill or decode at least 1"),
        ("slo = 1\n", "slo", "object"),
        ("[slo\n", "syntax", "line 1"),
    ],
)
def test_an_error_in_a_file_names_the_file_the_key_and_what_to_do(
    tmp_path: Path, text: str, place: str, words: str
) -> None:
    path = written(tmp_path, text)
    error = error_of(path, {})
    assert (error.where, error.key) == (str(path), place)
    assert words in error.fix
    assert str(error) == f"{path}: {place}: {error.fix}"


def test_broken_json_is_an_error_with_its_place(tmp_path: Path) -> None:
    assert error_of(written(tmp_path, "{", "c.json"), {}).key == "syntax"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    error = error_of(tmp_path / "none.toml", {})
    assert "none.toml" in str(error)
    assert "give an existing TOML file" in error.fix


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in error_of(path, {}).fix


@pytest.mark.parametrize(
    ("variable", "value", "key"),
    [
        ("DOPD__SLO__TTFTS", "1", "slo.ttfts"),
        ("DOPD__SLO__TTFT_S", "fast", "slo.ttft_s"),
        ("DOPD__SLO__TTFT_S__X", "1", "slo.ttft_s"),
        ("DOPD__SLO", "1", "name"),
        ("DOPD__SLO__", "1", "name"),
        ("DOPD__GATEWAY__PORT", "70000", "gateway.port"),
    ],
)
def test_an_error_in_the_environment_names_the_variable(variable: str, value: str, key: str) -> None:
    error = error_of(None, {"DOPD__SLO__TPOT_S": "0.1", variable: value})
    assert (error.where, error.key) == (variable, key)


def documented() -> dict[str, str]:
    """Key -> default, as docs/configuration.md has them."""
    rows: dict[str, str] = {}
    section = ""
    for line in (ROOT / "docs/configuration.md").read_text().splitlines():
        if heading := re.fullmatch(r"## `\[(\w+)\]`.*", line):
            section = heading[1]
        elif row := re.match(r"\| `(\w+)` \| `(.*?)` \| \S.*", line):
            rows[f"{section}.{row[1]}"] = row[2]
    return rows


def in_code() -> dict[str, str]:
    tables: dict[str, dict[str, Any]] = msgspec.to_builtins(Config())
    return {
        f"{section}.{key}": msgspec.json.encode(value).decode()
        for section, table in tables.items()
        for key, value in table.items()
    }


def test_the_documentation_has_every_key_with_its_default_and_no_other() -> None:
    assert documented() == in_code()
