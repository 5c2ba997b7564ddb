"""Step and transfer times, and the profiles that they come from."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dopd.errors import ConfigError
from dopd.perf.model import prefill_s, step_s, transfer_s
from dopd.perf.profile import PROFILES, Profile, named

every_profile = pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
H200 = named("h200-llama-3.1-8b-fp8-tp1")


def test_an_unknown_profile_is_refused_with_the_list() -> None:
    with pytest.raises(ConfigError, match="h200-llama"):
        named("abacus")


@every_profile
def test_a_profile_is_physical(profile: Profile) -> None:
    times = (
        profile.prefill_fixed_s, profile.prefill_token_s, profile.prefill_token2_s, profile.decode_fixed_s,
        profile.decode_request_s, profile.decode_context_s, profile.transfer_fixed_s,
    )  # fmt: skip
    assert min(times) >= 0 and max(times) < 1
    assert profile.chunk_tokens % profile.block_tokens == 0
    assert profile.kv_total_tokens > profile.max_step_tokens
    assert profile.source


@every_profile
def test_an_empty_step_takes_no_time_and_every_load_takes_some(profile: Profile) -> None:
    assert step_s(profile, 0, 0, 0, 0) == 0.0
    assert 0 < step_s(profile, 0, 0, 1, 100) < step_s(profile, 0, 0, 64, 6400) < 1
    assert 0.001 < prefill_s(profile, 1) < prefill_s(profile, 8000) < 10


@given(st.integers(0, 8000), st.integers(1, 8000), st.integers(1, 8000))
def test_the_chunks_of_a_prompt_add_up_to_the_whole(start: int, first: int, second: int) -> None:
    def chunk_s(begin: int, end: int) -> float:
        return step_s(H200, end - begin, end * end - begin * begin, 0, 0)

    whole = chunk_s(start, start + first + second)
    parts = chunk_s(start, start + first) + chunk_s(start + first, start + first + second)
    assert parts == pytest.approx(whole + H200.prefill_fixed_s)


def test_a_mixed_step_pays_the_larger_fixed_cost_once() -> None:
    mixed = step_s(H200, 100, 10_000, 8, 4000)
    apart = step_s(H200, 100, 10_000, 0, 0) + step_s(H200, 0, 0, 8, 4000)
    assert mixed == pytest.approx(apart - min(H200.prefill_fixed_s, H200.decode_fixed_s))


def test_a_transfer_costs_its_latency_and_its_bytes() -> None:
    assert transfer_s(H200, 0) == transfer_s(H200, -1) == 0.0
    assert transfer_s(H200, 256) == pytest.approx(0.39e-3 + 256 * 131_072 / 146e9)
