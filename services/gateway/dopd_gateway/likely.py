"""Log-probabilities with the names of their tokens. Pure.

Consumes: rows of ids and values, the drawn token's own first. Produces: `TokenLogprob`s, with vLLM's names: a token
that is a part of a character has the name "", and the one that completes it the whole character.
"""

from collections.abc import Sequence

from dopd_gateway.text import Vocabulary
from dopd_proto.asked import TokenLogprob, TopLogprob

LEAST = -9999.0
"""JSON has no minus infinity; vLLM writes this in its place."""
_BROKEN = "\ufffd"
# A character has at most four bytes.
_CONTEXT_TOKENS = 4


class Likely:
    """Of one answer; `most` of the likeliest tokens are told beside each."""

    def __init__(self, vocabulary: Vocabulary, most: int) -> None:
        self._vocabulary, self._most = vocabulary, most
        self._before: list[int] = []

    def named(self, rows: Sequence[tuple[Sequence[int], Sequence[float]]]) -> tuple[TokenLogprob, ...]:
        """The next tokens of the answer, in order."""
        made = []
        for ids, values in rows:
            own, *top = zip(ids, values, strict=True)
            made.append(TokenLogprob(
                token=self._name(own[0]), token_id=own[0], logprob=max(own[1], LEAST),
                top=tuple(
                    TopLogprob(token=self._name(token), token_id=token, logprob=max(value, LEAST))
                    for token, value in top[: self._most]
                ),
            ))  # fmt: skip
            self._before = [*self._before, own[0]][-_CONTEXT_TOKENS:]
        return tuple(made)

    def _name(self, token: int) -> str:
        name = self._vocabulary.name(token)
        return self._completed(token) if name.endswith(_BROKEN) else name

    def _completed(self, token: int) -> str:
        """The character that the token completes with those before it, "" if it does not."""
        decode = self._vocabulary.decode
        for count in range(1, len(self._before) + 1):
            context = self._before[-count:]
            text = decode([*context, token])
            if not text.endswith(_BROKEN):
                # What the whole tokens before give has been told with them.
                while context and decode(context[-1:]).endswith(_BROKEN):
                    context.pop()
                return text.removeprefix(decode(context)) if context else text
        return ""
