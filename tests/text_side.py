"""What tests of the gateway's text side share: a scripted token side, and a tiny tokenizer made on the spot."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import cache

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from dopd.errors import RequestError
from dopd.runtime.clock import RealRuntime
from dopd.slo import Slo
from dopd_gateway.api import TextGateway
from dopd_gateway.stream import Inbound, Piece
from dopd_gateway.text import Vocabulary
from dopd_gateway.timeline import Phase, Place
from dopd_gateway.tokenizer import Tokenizer
from dopd_proto.asked import Feature, FinishReason

BOS, EOS = 1, 2
MODEL = "tiny"
TEXT = "The quick brown fox jumps over the lazy dog. Wörter und Zeichen: äöü ß € 漢字 🙂 — stop STOP\n\n"
Script = Sequence[Piece | RequestError | float]
"""Pieces to give, an error to raise, or seconds to wait."""


@cache
def tiny_bpe(bos: bool = False) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer of 400 entries; most characters outside ASCII take several tokens."""
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([TEXT] * 3, trainer)
    if bos:
        bpe.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
        )
    return bpe


def tiny_vocabulary() -> Tokenizer:
    return Tokenizer(tiny_bpe(), eos_token_ids=[EOS])


def ids_of(text: str) -> list[int]:
    return tiny_bpe().encode(text).ids


def pieces(tokens: Sequence[int], sizes: Sequence[int] = (), end: FinishReason | None = "length") -> list[Piece]:
    """The tokens as pieces of these sizes, then of one token each; the last has the end."""
    cut: list[Piece] = []
    index = 0
    while index < len(tokens):
        size = sizes[len(cut)] if len(cut) < len(sizes) else 1
        some = tuple(tokens[index : index + size])
        last = index + size >= len(tokens)
        cut.append(Piece(index, some, tuple(0.0 for _ in some), end if last else None))
        index += size
    return cut


class ScriptedStream:
    """A `TokenStream` that follows a script, and waits for ever when the script has no end."""

    def __init__(self, request_id: str, script: Script) -> None:
        self.request_id, self._script = request_id, script
        self.cancelled = asyncio.Event()
        self.behind = False

    async def __aiter__(self) -> AsyncIterator[Piece]:
        for step in self._script:
            if isinstance(step, RequestError):
                raise step
            if isinstance(step, Piece):
                yield step
            await asyncio.sleep(step if isinstance(step, float) else 0)
        await asyncio.Event().wait()

    def cancel(self, enough: bool = False) -> None:
        self.cancelled.set()

    def timeline(self) -> list[Phase]:
        return [Phase("queued", 1.0, 2.5, Place("g1"))]


class ScriptedGateway:
    """A `TokenGateway` without workers. `refuse` is raised by `open`."""

    def __init__(self, script: Script = (), max_model_len: int = 100_000) -> None:
        self.model, self.max_model_len, self.script = MODEL, max_model_len, script
        self.serving = True
        self.features: tuple[Feature, ...] = ("logprobs", "penalties", "logit_bias", "json_schema")
        self.opened = asyncio.Event()
        self.refuse: Exception | None = None
        self.inbounds: list[Inbound] = []
        self.streams: list[ScriptedStream] = []

    def open(self, inbound: Inbound) -> ScriptedStream:
        if self.refuse is not None:
            raise self.refuse
        self.inbounds.append(inbound)
        self.streams.append(ScriptedStream(f"r-{len(self.streams) + 1}", self.script))
        self.opened.set()
        return self.streams[-1]

    def ready(self) -> bool:
        return self.serving


def text_gateway(gateway: ScriptedGateway, vocabulary: Vocabulary | None = None) -> TextGateway:
    return TextGateway(gateway, vocabulary or tiny_vocabulary(), RealRuntime(), Slo(), timeout_s=600.0)
