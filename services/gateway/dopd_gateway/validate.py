"""What a request must keep to, before anything is queued for it. Pure.

Consumes: `Generate` and, once tokenized, its prompt. Produces: `Sampling`, or a BadRequest or UnknownModel that names
the field and the numbers.
"""

from collections.abc import Callable, Sequence
from math import isfinite

from dopd.errors import BadRequest, Unavailable, UnknownModel
from dopd_proto.request import Generate, Sampling

MAX_STOP_STRINGS = 4
_INT64 = range(-(2**63), 2**63)

_RULES: tuple[tuple[str, Callable[[Generate], bool], str], ...] = (
    ("max_tokens", lambda r: r.max_tokens >= 1, "must be at least 1"),
    ("min_tokens", lambda r: r.min_tokens >= 0, "must not be negative"),
    ("temperature", lambda r: isfinite(r.temperature) and r.temperature >= 0, "must be a number of at least 0"),
    ("top_p", lambda r: 0 < r.top_p <= 1, "must be above 0 and at most 1"),
    ("top_k", lambda r: r.top_k >= -1, "must be at least 1, or 0 or -1 for all tokens"),
    ("seed", lambda r: r.seed is None or r.seed in _INT64, "must fit in 64 bits"),
    ("priority", lambda r: r.priority in _INT64, "must fit in 64 bits"),
    ("timeout_s", lambda r: r.timeout_s is None or (isfinite(r.timeout_s) and r.timeout_s > 0), "must be above 0"),
)


def check_fields(request: Generate, model: str) -> None:
    """All that can be said without the prompt's tokens."""
    if request.model != model:
        raise UnknownModel(
            f"the model {request.model[:200]!r} does not exist here; this gateway serves {model!r}", "model"
        )
    for field, keeps, rule in _RULES:
        if not keeps(request):
            raise BadRequest(f"{field} is {getattr(request, field)}, but {rule}", field)
    if request.min_tokens > request.max_tokens:
        text = f"min_tokens is {request.min_tokens}, but must be at most max_tokens, which is {request.max_tokens}"
        raise BadRequest(text, "min_tokens")
    _check_stop(request.stop)


def _check_stop(stop: Sequence[str]) -> None:
    if len(stop) > MAX_STOP_STRINGS:
        raise BadRequest(f"stop has {len(stop)} strings, but must have at most {MAX_STOP_STRINGS}", "stop")
    if "" in stop:
        raise BadRequest("stop has an empty string, which would end every answer at once", "stop")


def check_prompt(tokens: Sequence[int], request: Generate, vocab_size: int, max_model_len: int) -> None:
    """Whether these tokens are ones of the model, and leave room for the answer."""
    if not tokens:
        raise BadRequest("prompt is empty", "prompt")
    for wrong in (min(tokens), max(tokens)):
        if not 0 <= wrong < vocab_size:
            raise BadRequest(f"prompt has the token id {wrong}, but ids are 0 to {vocab_size - 1}", "prompt")
    if max_model_len <= 0:
        raise Unavailable("no worker has told yet how long the model's context is")
    if len(tokens) + request.max_tokens > max_model_len:
        text = (
            f"the model's context is {max_model_len} tokens, but {len(tokens) + request.max_tokens} were asked for: "
            f"{len(tokens)} of the prompt and max_tokens {request.max_tokens}"
        )
        raise BadRequest(text, "prompt" if len(tokens) >= max_model_len else "max_tokens")


def sampling_of(request: Generate, vocab_size: int) -> Sampling:
    """How tokens are drawn; a `top_k` that leaves all tokens in is 0."""
    return Sampling(
        max_tokens=request.max_tokens,
        min_tokens=request.min_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k if 0 < request.top_k < vocab_size else 0,
        seed=request.seed,
        ignore_eos=request.ignore_eos,
    )
