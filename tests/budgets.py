"""Tiny step budgets for tests, importable by name in an engine's child process (it inherits this process's path)."""

from dopd.policy.base import StepLimit, StepView


class FollowDecodes:
    """Each running decode takes `per_decode` tokens from a step of `full` tokens."""

    def __init__(self, full: float, per_decode: float) -> None:
        self._full, self._per_decode = full, per_decode

    def initial(self) -> None:
        return None

    def limit(self, state: None, step: StepView) -> tuple[None, StepLimit]:
        return None, StepLimit(max_tokens=max(1, int(self._full - self._per_decode * step.decodes)))


class RunToCompletion:
    """Nothing starts while anything runs."""

    def initial(self) -> int:
        return 0

    def limit(self, state: int, step: StepView) -> tuple[int, StepLimit]:
        busy = step.decodes + step.prefills > 0
        return state + 1, StepLimit(gate="closed" if busy else "open")


class AtMost:
    """No more than `running` requests at once."""

    def __init__(self, running: float) -> None:
        self._running = int(running)

    def initial(self) -> None:
        return None

    def limit(self, state: None, step: StepView) -> tuple[None, StepLimit]:
        return None, StepLimit(max_running=self._running)


class Broken:
    """A budget with a bug."""

    def initial(self) -> None:
        return None

    def limit(self, state: None, step: StepView) -> tuple[None, StepLimit]:
        raise ZeroDivisionError("a bug in a policy")
