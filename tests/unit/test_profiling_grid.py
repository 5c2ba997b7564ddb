"""The grid of a measurement: it fits the engine, covers every kind of step, and refuses where there is no room."""

import pytest

from dopd.errors import LoadError
from dopd_loadgen.profiling.grid import Ask, Limits, Scene, Size, grid, spaced

GPU = Limits(945_029, 256, 8192, 131_072, 16)
CPU = Limits(16_352, 16, 512, 2048, 32)
LONG = Limits(40_000, 64, 2048, 32_768, 16)


def together(scene: Scene) -> list[Ask]:
    return [ask for stage in scene.stages for ask in stage]


@pytest.mark.parametrize("limits", [GPU, CPU, LONG])
@pytest.mark.parametrize("size", ["small", "full"])
def test_all_that_may_be_in_the_engine_together_fits_its_memory(limits: Limits, size: Size) -> None:
    for scene in grid(limits, size):
        # Prompts of later stages come one after the other; each ends with its first token.
        most = max(scene.stages[1:], key=lambda stage: stage[0].prompt_tokens, default=())
        asks = [*scene.stages[0], *most]
        blocks = sum(-(-(ask.prompt_tokens + ask.new_tokens) // limits.block_tokens) for ask in asks)
        assert blocks * limits.block_tokens <= limits.kv_total_tokens
        assert all(ask.prompt_tokens + ask.new_tokens <= limits.max_model_len for ask in together(scene))
        assert all(len(stage) <= limits.max_running for stage in scene.stages)


@pytest.mark.parametrize("limits", [GPU, CPU, LONG])
def test_the_full_grid_reaches_near_every_limit(limits: Limits) -> None:
    scenes = grid(limits, "full")
    decodes = [scene.stages[0] for scene in scenes if scene.phase == "decode"]
    assert max(len(stage) for stage in decodes) == limits.max_running
    most = min(limits.kv_total_tokens, limits.max_running * limits.max_model_len)
    assert max(sum(ask.prompt_tokens for ask in stage) for stage in decodes) > 0.7 * most
    alone = [
        stage[-1].prompt_tokens for scene in scenes if scene.phase == "prefill" and len(stage := scene.stages[0]) == 3
    ]
    room = limits.kv_total_tokens - 2 * limits.max_step_tokens
    assert max(alone) > 0.8 * min(limits.max_model_len, room), "a prompt of many chunks"
    assert any(len(scene.stages[0]) > 4 for scene in scenes if scene.phase == "prefill"), "several prompts in a step"


def test_decodes_run_as_long_as_the_mixed_scene_needs_them() -> None:
    for scene in grid(CPU, "full"):
        if scene.phase == "mixed":
            first, *others = scene.stages
            free = CPU.max_step_tokens - len(first)
            steps = sum(-(-stage[0].prompt_tokens // free) for stage in others)
            own = -(-sum(ask.prompt_tokens for ask in first) // free)
            assert min(ask.new_tokens for ask in first) > steps + own


def test_small_is_smaller_and_both_have_all_three_phases() -> None:
    small, full = grid(GPU, "small"), grid(GPU, "full")
    assert len(small) < len(full) / 2
    for scenes in (small, full):
        assert {scene.phase for scene in scenes} == {"prefill", "decode", "mixed"}


@pytest.mark.parametrize(
    "limits", [Limits(256, 16, 512, 2048, 16), Limits(16_352, 1, 512, 2048, 16), Limits(16_352, 16, 512, 8, 16)]
)
def test_an_engine_without_room_is_refused(limits: Limits) -> None:
    with pytest.raises(LoadError, match="no room"):
        grid(limits, "small")


def test_prompts_come_behind_two_steps_that_are_full_to_the_last_token() -> None:
    short = Limits(40_000, 64, 8192, 3000, 16)
    for limits in (GPU, CPU, short):
        for scene in grid(limits, "small", longest_prompt=1500, largest_batch=8):
            if scene.phase == "prefill":
                lead = [ask.prompt_tokens for ask in scene.stages[0] if not ask.measured]
                assert sum(lead) == 2 * limits.max_step_tokens
                assert max(lead) < limits.max_model_len
                assert len(scene.stages[0]) - len(lead) < 8
                assert all(ask.prompt_tokens <= 1500 for ask in scene.stages[0] if ask.measured)


def test_values_are_spaced_by_a_ratio_and_include_both_ends() -> None:
    assert spaced(16, 1024, 4) == [16, 64, 256, 1024]
    assert spaced(1, 3, 7) == [1, 2, 3]
    assert spaced(5, 5, 3) == [5]
