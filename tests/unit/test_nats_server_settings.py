"""How a nats-server is found and told what to do."""

from pathlib import Path

import pytest

from dopd.bus import server
from dopd.errors import ConfigError


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any nats-server."""
    monkeypatch.delenv("NATS_SERVER_BIN", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(server, "_ROOT", tmp_path / "checkout")
    monkeypatch.setattr(server, "_SYSTEM", tmp_path / "usr/sbin/nats-server")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_places_are_searched_in_order_and_the_first_hit_counts(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (
        bare / "checkout/.tools/nats/usr/sbin/nats-server",
        bare / "checkout/.tools/bin/nats-server",
        bare / "usr/sbin/nats-server",
        bare / "bin/nats-server",
    ):
        program(place)
        assert server.find_nats_server() == place
    monkeypatch.setenv("NATS_SERVER_BIN", str(program(bare / "mine")))
    assert server.find_nats_server() == bare / "mine"


def test_a_machine_without_a_server_gets_an_error_that_says_what_to_do(bare: Path) -> None:
    with pytest.raises(ConfigError, match="make setup"):
        server.find_nats_server()


def test_a_named_server_that_is_none_is_an_error_and_no_other_is_taken(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(bare / "bin/nats-server")
    monkeypatch.setenv("NATS_SERVER_BIN", str(bare / "missing"))
    with pytest.raises(ConfigError, match="NATS_SERVER_BIN"):
        server.find_nats_server()


def test_a_config_listens_on_loopback_only_and_quotes_its_paths() -> None:
    text = server.nats_config(Path('/tmp/with "quotes"/js'), port=4333)
    assert 'listen: "127.0.0.1:4333"' in text
    assert '"/tmp/with \\"quotes\\"/js"' in text


def test_addresses_are_unknown_until_the_server_has_written_them(tmp_path: Path) -> None:
    assert server.read_addresses(tmp_path, 7) is None
    ports = tmp_path / "nats-server_7.ports"
    ports.write_text('{"nats": ["nats://127')
    assert server.read_addresses(tmp_path, 7) is None
    ports.write_text('{"nats": ["nats://127.0.0.1:1"], "monitoring": ["http://127.0.0.1:2"]}')
    assert server.read_addresses(tmp_path, 7) == server.ServerAddresses("nats://127.0.0.1:1", "http://127.0.0.1:2")
