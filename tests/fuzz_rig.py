"""What the fuzzers share: how many cases, from where, and a gateway that answers all that is valid.

`FUZZ_CASES=100000` for a long run, `FUZZ_SEED` for another one; without it every run makes the same cases.
"""

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, seed, settings

from dopd.engine.sim.tokens import VOCABULARY
from dopd.runtime.clock import RealRuntime
from dopd.slo import Slo
from dopd_gateway.api import TextGateway
from dopd_gateway.number_tokenizer import NumberTokenizer
from tests.text_side import ScriptedGateway, pieces

CASES = int(os.environ.get("FUZZ_CASES", "0"))
"""0: so many as take a few seconds."""
SEED = int(os.environ.get("FUZZ_SEED", "0"))
CONTEXT = 131_072


def fuzzed(cases: int) -> Callable[[Any], Any]:
    """Hypothesis with so many examples, always the same ones, and a failing one made small."""
    limits = settings(
        max_examples=cases, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )  # fmt: skip
    return lambda test: seed(SEED)(limits(test))


def answering() -> tuple[ScriptedGateway, TextGateway]:
    """The model `emulated`, with the emulated engine's vocabulary."""
    gateway = ScriptedGateway(pieces([5, 6]), max_model_len=CONTEXT)
    gateway.model = "emulated"
    return gateway, TextGateway(gateway, NumberTokenizer(VOCABULARY), RealRuntime(), Slo(), timeout_s=600.0)
