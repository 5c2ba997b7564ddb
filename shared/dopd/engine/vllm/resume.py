"""Requests that go on where another engine left them: penalties, draws and grammars see the output so far as output.

For vLLM all tokens of a job are its prompt. For most of a request that is the same; for what counts or follows the
*output* it is not. Such a job brings the tokens made so far under `MADE_KEY` of its `extra_args`, and here vLLM's
model runner gets the request as one that was preempted and comes back, which is something it knows. Its scheduler,
and with it caches, lengths and stores, see a prompt as ever.

Consumes vLLM's scheduler outputs, request states and grammars; produces the same, taken up. Lives in EngineCore's
process and in every worker process of vLLM, which import it as their extension. It also mends seeded requests whose
prompt takes more than one step: on a CPU vLLM would die of them.
"""

from typing import Any

import torch
from vllm.v1.sample import sampler
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.worker import gpu_input_batch, gpu_model_runner

from dopd.engine.vllm.step_view import MADE_KEY

_DRAWS = 2**31


class WorkerExtension:
    """Named in the engine's arguments, so that vLLM imports this module wherever a model runs."""


def made_of(sampling_params: Any) -> list[int]:
    """The request's output before this job, if it matters."""
    extra = sampling_params.extra_args if sampling_params is not None else None
    made: list[int] = (extra or {}).get(MADE_KEY) or []
    return made


class Resumed:
    """The requests of a scheduler that bring output along."""

    def __init__(self) -> None:
        self._made: dict[str, int] = {}

    def arrive(self, request: Any) -> None:
        if made := made_of(request.sampling_params):
            self._made[request.request_id] = len(made)

    def leave(self, request: Any) -> None:
        self._made.pop(request.request_id, None)

    def tell_runner(self, output: Any) -> None:
        """Have the model runner see what was made before as output, in a `SchedulerOutput` on its way there."""
        if not self._made:
            return
        for new in output.scheduled_new_reqs:
            if made := self._made.get(new.req_id):
                # A copy: the scheduler counts lengths from the job's begin, the runner from the prompt's end.
                new.sampling_params = new.sampling_params.clone()
                new.sampling_params.min_tokens += made
                new.prompt_token_ids = new.prompt_token_ids[:-made]
        cached = output.scheduled_cached_reqs
        for place, request_id in enumerate(cached.req_ids):
            cached.num_output_tokens[place] += self._made.get(request_id, 0)


class _Seeded(torch.Generator):
    """A CPU generator that finds its place by the request's output: one draw for each token.

    vLLM takes back the draw of a step that made no token by the generator's offset, which CPUs have not.
    """

    state: Any

    def get_offset(self) -> int:
        return 0

    def set_offset(self, offset: int) -> None:
        self.find_place()

    def find_place(self) -> "_Seeded":
        self.manual_seed(self.state.sampling_params.seed)
        torch.randint(0, _DRAWS, (len(self.state.output_token_ids),), generator=self, dtype=torch.long)
        return self


class _State(gpu_input_batch.CachedRequestState):
    """vLLM's state of a request in the model runner, with the output so far."""

    def __post_init__(self) -> None:
        made = made_of(self.sampling_params)
        self.output_token_ids.extend(made)
        super().__post_init__()
        generator: Any = self.generator
        if generator is not None and generator.device.type == "cpu":
            seeded = _Seeded(device="cpu")
            seeded.state = self
            self.generator: Any = seeded.find_place()
        elif generator is not None and made:
            # Elsewhere a draw is not one number: another stream for each segment.
            generator.manual_seed((self.sampling_params.seed + len(made)) & 0x7FFFFFFF)


_compile = StructuredOutputManager._create_grammar


def _compile_and_follow(manager: Any, request: Any) -> Any:
    grammar = _compile(manager, request)
    made = made_of(request.sampling_params)
    if made and not grammar.accept_tokens(request.request_id, made):
        raise ValueError("the output so far does not keep to the grammar")
    return grammar


def _no_ranks(logprobs: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """In place of the ranks of drawn tokens, which nobody here asks for.

    vLLM compiles a kernel for them when the first request wants log-probabilities: 8 s on a CPU, for all requests.
    """
    return torch.zeros(logprobs.shape[0], dtype=torch.int64, device=logprobs.device)


sampler.batched_count_greater_than = _no_ranks
gpu_model_runner.CachedRequestState = _State
StructuredOutputManager._create_grammar = _compile_and_follow
