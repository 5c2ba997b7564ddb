"""How much work each gateway may send: a cumulative window per gateway, cut from what is free. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from dopd_proto.telemetry import Grant


@dataclass(slots=True)
class Account:
    """One gateway incarnation as this worker knows it; `sent_s` is when it sent its newest state."""

    incarnation: str
    expires_s: float
    sent_s: float = 0.0
    received: int = 0
    batches: int = 0
    limit: int = 0


def free_slots(capacity: int, in_hand: int, reserved_tokens: int, kv_total_tokens: int) -> int:
    """Requests that may still come: by count, and by memory at the mean demand of those in hand.

    `reserved_tokens` is what the requests in hand will hold at their longest.
    """
    free = max(0, capacity - in_hand)
    if not in_hand or not kv_total_tokens:
        return free
    room = kv_total_tokens - reserved_tokens
    return max(0, min(free, room * in_hand // max(1, reserved_tokens)))


def grants(accounts: Mapping[str, Account], free: int) -> tuple[Grant, ...]:
    """The windows of all gateways. Free slots are dealt out evenly, so the sum is never more than there are.

    Work on its way on the strength of an older, larger window is taken all the same.
    """
    shared, extra = divmod(free, max(1, len(accounts)))
    out: list[Grant] = []
    for place, gateway_id in enumerate(sorted(accounts)):
        account = accounts[gateway_id]
        account.limit = account.received + shared + (1 if place < extra else 0)
        out.append(Grant(
            gateway_id=gateway_id, gateway_incarnation=account.incarnation,
            received=account.received, limit=account.limit, batches=account.batches,
        ))  # fmt: skip
    return tuple(out)
