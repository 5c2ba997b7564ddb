"""What the emulated model answers: a function of the prompt's tokens, in the emulated vocabulary's words."""

from collections.abc import Sequence

from dopd.engine.sim.tokens import VOCABULARY
from dopd_gateway.number_tokenizer import NumberTokenizer
from tests.e2e.live import expected

WORDS = NumberTokenizer(VOCABULARY)


def answer_to(prompt: str | Sequence[int], count: int) -> str:
    """The greedy answer's text as a completion has it."""
    tokens = WORDS.encode(prompt) if isinstance(prompt, str) else list(prompt)
    step = WORDS.stepper(tokens)
    return "".join(map(step, expected(tokens, count)))


def reply_to(said: str, count: int) -> str:
    """The greedy answer to a chat of one message."""
    prompt = WORDS.chat([{"role": "user", "content": said}], True, {}, 0.0)
    return answer_to(WORDS.encode(prompt), count)
