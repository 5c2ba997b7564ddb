"""Our `Job` in vLLM's words.

Consumes a `Job` and what the model says of its vocabulary; produces vLLM's request. Lengths of a job count from the end
of the original prompt; for vLLM all of the job's tokens are the prompt, so what was made before is subtracted.

Where the output so far matters (penalties, seeded draws, grammars), the job brings it along: see `resume.py`.
"""

import time
from dataclasses import dataclass

from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.structured_output.backend_xgrammar import validate_xgrammar_grammar

from dopd.engine.contract import Job
from dopd.engine.vllm.step_view import EXTRA_ARGS_KEY, FAR_KEY, MADE_KEY
from dopd.errors import BadRequest


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Size, and the tokens that end a text."""

    size: int
    stop_tokens: frozenset[int]

    @classmethod
    def of(cls, config: VllmConfig) -> "Vocabulary":
        model = config.model_config
        stop: set[int] = set()
        for found in (model.try_get_generation_config().get("eos_token_id"), model.hf_text_config.eos_token_id):
            stop.update([found] if isinstance(found, int) else found or ())
        return cls(model.get_vocab_size(), frozenset(stop))


def check(job: Job, vocabulary: Vocabulary, max_tokens: int) -> None:
    """Refuse what would end the engine and not only the request. Raises BadRequest."""
    new_tokens = max(1, job.max_new_tokens)
    if not job.tokens:
        raise BadRequest("the input is empty")
    if len(job.tokens) + new_tokens > max_tokens:
        raise BadRequest(f"{len(job.tokens)} input and {new_tokens} output tokens; the limit is {max_tokens}")
    if max(job.tokens) >= vocabulary.size or min(job.tokens) < 0:
        raise BadRequest(f"a token id is outside of the vocabulary of {vocabulary.size}")


def engine_request(job: Job, request_id: str, vocabulary: Vocabulary) -> EngineCoreRequest:
    """The request for EngineCore. Raises BadRequest where vLLM finds the sampling impossible."""
    return EngineCoreRequest(
        request_id=request_id,
        prompt_token_ids=list(job.tokens),
        mm_features=None,
        sampling_params=_sampling_params(job, vocabulary),
        pooling_params=None,
        arrival_time=time.time(),
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
        priority=job.priority,
    )


def _sampling_params(job: Job, vocabulary: Vocabulary) -> SamplingParams:
    sampling, made = job.sampling, len(job.tokens) - job.prompt_tokens
    # The one token of a cut inside the prompt is thrown away: nothing of the request's sampling applies to it.
    most = max(1, min(job.max_new_tokens, sampling.max_tokens - made)) if job.emit else 1
    try:
        params = SamplingParams(
            max_tokens=most,
            min_tokens=min(max(0, sampling.min_tokens - made), most),
            temperature=sampling.temperature if job.emit else 0.0,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            seed=sampling.seed,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            repetition_penalty=sampling.repetition_penalty,
            logit_bias=dict(sampling.logit_bias) or None,
            logprobs=sampling.logprobs if job.emit else None,
            structured_outputs=_grammar(job),
            ignore_eos=sampling.ignore_eos,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args=_extra(job),
        )
        validate_xgrammar_grammar(params)
    except (ValueError, VLLMValidationError) as error:
        raise BadRequest(str(error)) from error
    params.update_from_generation_config({"eos_token_id": sorted(vocabulary.stop_tokens)})
    return params


def _grammar(job: Job) -> StructuredOutputsParams | None:
    if not job.sampling.json_schema or not job.emit:
        return None
    params = StructuredOutputsParams(json=job.sampling.json_schema)
    # One for the life of an engine; vLLM's own front would choose it.
    params._backend = "xgrammar"
    return params


def _extra(job: Job) -> dict[str, object] | None:
    batch, made = job.batch, len(job.tokens) - job.prompt_tokens
    extra: dict[str, object] = {}
    if batch:
        extra[EXTRA_ARGS_KEY] = [batch.batch_id, batch.size, batch.exclusive]
    if made > 0 and job.emit and _follows_output(job):
        extra[MADE_KEY] = list(job.tokens[job.prompt_tokens :])
    if job.far_tokens:
        extra[FAR_KEY] = job.far_tokens
    return extra or None


def _follows_output(job: Job) -> bool:
    """Whether the next token hangs on which tokens are output, and not only on all tokens."""
    sampling = job.sampling
    penalized = sampling.presence_penalty or sampling.frequency_penalty
    return bool(penalized or sampling.json_schema or (sampling.seed is not None and sampling.temperature > 0))
