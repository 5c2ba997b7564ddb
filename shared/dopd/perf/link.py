"""A link on which transfers contend: one direction of one worker's network interface. Tokens and times in, times out.

First come, first served: each transfer has the whole bandwidth once those before it are through, as vLLM's LMCache
connector loads one request after the other. Had they shared it evenly instead, the last of them would end at the same
time: a link that is never idle while somebody waits moves the same bytes either way (conservation of work).
"""

from dopd.perf.model import transfer_s
from dopd.perf.profile import Profile


class Link:
    """`free_s` is when all that was given to the link has gone through it; what was asked for is not taken back."""

    def __init__(self, profile: Profile) -> None:
        self.free_s = 0.0
        self._profile = profile

    def move(self, tokens: int, now_s: float) -> float:
        """When the KV of so many tokens, asked for at `now_s`, has arrived; at once when there are none.

        The fixed part of `transfer_s` is the way there and back: it delays a transfer, but keeps nobody from the link.
        """
        if tokens <= 0:
            return now_s
        arrived_s = max(now_s, self.free_s) + transfer_s(self._profile, tokens)
        self.free_s = arrived_s - self._profile.transfer_fixed_s
        return arrived_s
