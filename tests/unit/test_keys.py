"""API keys: the file, the variable, and what is said of them."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from dopd import cli
from dopd.errors import ConfigError, TooManyRequests
from dopd_gateway.keys import LOOK_EVERY_S, MOST_KEYS, VARIABLE, Keys, line_of, new_key, read_keys
from dopd_gateway.rate import Limit, Rates

SALT, HASH = "0" * 32, "0" * 64


def file_of(folder: Path, *lines: str) -> Path:
    file = folder / "keys"
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def test_a_key_is_its_owners_and_nearly_the_same_key_is_nobodys(tmp_path: Path) -> None:
    alice, bob = new_key(), new_key()
    keys = Keys(str(file_of(tmp_path, line_of("alice", alice), "# a comment", "", line_of("bob", bob))), {})
    assert keys.wanted
    assert [keys.name_of(key, 0.0) for key in (alice, bob)] == ["alice", "bob"]
    for wrong in (
        "",
        alice[:-1],
        alice + "x",
        alice.swapcase(),
        " " + alice,
        "alice",
        line_of("alice", alice),
        "ü",
        "x" * 10_000,
    ):
        assert keys.name_of(wrong, 0.0) is None, wrong


def test_keys_are_long_random_and_never_in_their_lines() -> None:
    made = {new_key() for _ in range(1000)}
    assert len(made) == 1000
    assert all(len(key) == len("dopd-") + 43 for key in made)
    key = new_key()
    lines = {line_of("alice", key) for _ in range(10)}
    assert len(lines) == 10, "each has a salt of its own"
    assert not any(key in line or key[5:] in line for line in lines)


def test_all_entries_are_compared_in_constant_time_whichever_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[str, str]] = []

    def compare(one: str, other: str) -> bool:
        compared.append((one, other))
        return one == other

    key = new_key()
    keys = Keys(str(file_of(tmp_path, line_of("a", key), *(line_of(f"b{n}", new_key()) for n in range(9)))), {})
    monkeypatch.setattr("dopd_gateway.keys.hmac.compare_digest", compare)
    assert keys.name_of(key, 0.0) == "a"
    assert len(compared) == 10
    assert keys.name_of("no key", 0.0) is None
    assert len(compared) == 20


def test_a_name_may_have_two_keys_while_one_replaces_the_other(tmp_path: Path) -> None:
    old, new = new_key(), new_key()
    keys = Keys(str(file_of(tmp_path, line_of("alice", old), line_of("alice", new))), {})
    assert keys.name_of(old, 0.0) == keys.name_of(new, 0.0) == "alice"


def test_without_file_and_variable_no_key_is_wanted_and_an_empty_file_lets_nobody_in(tmp_path: Path) -> None:
    assert not Keys("", {}).wanted
    assert not Keys("", {VARIABLE: " "}).wanted
    keys = Keys(str(file_of(tmp_path)), {})
    assert keys.wanted
    assert keys.name_of(new_key(), 0.0) is None


def test_the_variable_gives_keys_beside_those_of_the_file(tmp_path: Path) -> None:
    one, two, three = new_key(), new_key(), new_key()
    keys = Keys(str(file_of(tmp_path, line_of("one", one))), {VARIABLE: f"two:{two}, three:{three}"})
    assert [keys.name_of(key, 0.0) for key in (one, two, three)] == ["one", "two", "three"]


@pytest.mark.parametrize(
    "text", ["sekrit-sekrit-sekrit-sekrit", "a:short", "a b:sekrit-sekrit-sekrit", "a:sekrit sekrit sekrit s"]
)
def test_a_variable_that_is_wrong_is_told_without_its_value(text: str) -> None:
    with pytest.raises(ConfigError, match=r"DOPD_API_KEYS, entry 2") as error:
        Keys("", {VARIABLE: f"alice:{new_key()},{text}"})
    assert "sekrit" not in str(error.value)
    assert "short" not in str(error.value)


@pytest.mark.parametrize(
    "line",
    [
        "sekrit",
        f"alice md5 {SALT} {HASH}",
        f"alice sha256 {SALT} {HASH[1:]}",
        f"alice sha256 {SALT[1:]} {HASH}",
        f"alice sha256 {HASH}",
        f"al,ice sha256 {SALT} {HASH}",
        f"alice sha256 {SALT} {HASH} requests_per_s=-1",
        f"alice sha256 {SALT} {HASH} requests_per_s=nan",
        f"alice sha256 {SALT} {HASH} requests_per_s=1 burst=0",
        f"alice sha256 {SALT} {HASH} sekrit=1",
        f"alice sha256 {SALT} {HASH} burst=1 burst=2",
        f"alice sha256 {SALT} {HASH} sekrit",
    ],
)
def test_a_line_that_is_wrong_is_told_by_its_number_and_never_by_what_is_in_it(tmp_path: Path, line: str) -> None:
    file = file_of(tmp_path, line_of("bob", new_key()), line)
    with pytest.raises(ConfigError, match=r"keys line 2: gateway\.api_keys_file: NAME sha256 SALT HASH") as error:
        Keys(str(file), {})
    assert "sekrit" not in str(error.value)
    assert "alice" not in str(error.value)


def test_a_file_that_cannot_be_read_or_has_too_many_keys_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Keys(str(tmp_path / "none"), {})
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="no text in UTF-8"):
        Keys(str(tmp_path / "binary"), {})
    with pytest.raises(ConfigError, match=f"{MOST_KEYS} are possible"):
        Keys(str(file_of(tmp_path, *[f"a sha256 {SALT} {HASH}"] * (MOST_KEYS + 1))), {})


def test_the_file_is_read_again_when_it_changes_and_not_more_often_than_bounded(tmp_path: Path) -> None:
    old, new = new_key(), new_key()
    file = file_of(tmp_path, line_of("alice", old))
    keys = Keys(str(file), {})
    assert keys.name_of(old, 100.0) == "alice"
    file_of(tmp_path, line_of("bob", new), "# so that its size differs")
    assert keys.name_of(new, 100.0 + LOOK_EVERY_S * 0.9) is None
    assert keys.name_of(new, 100.0 + LOOK_EVERY_S) == "bob"
    assert keys.name_of(old, 100.0 + LOOK_EVERY_S) is None


def test_a_file_that_became_wrong_or_went_away_changes_nothing_and_is_told_once(tmp_path: Path) -> None:
    key, other = new_key(), new_key()
    file = file_of(tmp_path, line_of("alice", key))
    keys = Keys(str(file), {})
    with capture_logs() as logs:
        file.write_text("sekrit\n")
        assert [keys.name_of(key, at_s) for at_s in (10.0, 20.0, 30.0)] == ["alice"] * 3
        file.unlink()
        assert [keys.name_of(key, at_s) for at_s in (40.0, 50.0)] == ["alice"] * 2
        file_of(tmp_path, line_of("alice", other))
        assert keys.name_of(key, 60.0) is None
    assert [log["event"] for log in logs] == ["api_keys_not_read", "api_keys_not_read", "api_keys_read"]
    assert not any(word in str(logs) for word in ("sekrit", key, other))


def test_a_limit_of_its_own_goes_before_that_of_all(tmp_path: Path) -> None:
    slow, free, other = new_key(), new_key(), new_key()
    lines = (line_of("slow", slow, Limit(0.5, 1)), line_of("free", free, Limit(0, 1)), line_of("other", other))
    keys = Keys(str(file_of(tmp_path, *lines)), {})
    rates = Rates(1.0, 2, keys.limit_of)

    def passed(name: str, times: int) -> int:
        count = 0
        for _ in range(times):
            try:
                rates.take(name, 0.0)
            except TooManyRequests:
                continue
            count += 1
        return count

    assert (passed("slow", 5), passed("other", 5), passed("free", 500)) == (1, 2, 500)
    with pytest.raises(TooManyRequests) as refused:
        rates.take("slow", 1.0)
    assert refused.value.retry_after_s == pytest.approx(1.0)


def test_the_command_prints_a_key_once_and_the_line_that_lets_it_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["key", "new", "alice", "--requests-per-s", "2.5", "--burst", "3"]) == 0
    _, key, _, line = capsys.readouterr().out.splitlines()
    keys = Keys(str(file_of(tmp_path, line)), {})
    assert keys.name_of(key, 0.0) == "alice"
    assert keys.limit_of("alice") == Limit(2.5, 3)


def test_the_command_appends_to_a_file_and_prints_the_key_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys"
    file.write_text("# without an end of line")
    made = []
    for name in ("alice", "bob"):
        assert cli.main(["key", "new", name, "--file", str(file)]) == 0
        made.append(capsys.readouterr().out.strip())
    keys = Keys(str(file), {})
    assert [keys.name_of(key, 0.0) for key in made] == ["alice", "bob"]
    assert [entry.limit for entry in read_keys(file)] == [None, None]


@pytest.mark.parametrize(
    "words", [["new"], ["new", "a b"], ["new", "a", "--burst", "0"], ["new", "a", "--requests-per-s", "-1"], []]
)
def test_a_wrong_command_line_ends_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = cli.main(["key", *words])
    except SystemExit as end:
        code = int(end.code or 0)
    assert code == 2
    assert "dopd-" not in capsys.readouterr().out


def test_a_file_that_cannot_be_written_ends_with_1_and_shows_no_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["key", "new", "a", "--file", str(tmp_path / "no" / "keys")]) == 1
    assert "dopd-" not in capsys.readouterr().out
