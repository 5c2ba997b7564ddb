"""Which profiles emulated workers have: one for all, or one for each first role.

Consumes the `[engine]` table and the policy; produces (prefill, decode) profiles. Unlike engines keep their roles.
"""

from dopd.config import EngineConfig
from dopd.errors import ConfigError
from dopd.perf.profile import Profile, named
from dopd.policy.base import Policy


def pair(engine: EngineConfig, policy: Policy) -> tuple[Profile, Profile]:
    """The profiles of workers that start as prefill and as decode. Raises ConfigError, see `check_pair`."""
    prefill = named(engine.profile)
    decode = named(engine.decode_profile) if engine.decode_profile else prefill
    check_pair(policy, prefill, decode)
    return prefill, decode


def check_pair(policy: Policy, prefill: Profile, decode: Profile) -> None:
    """Raises ConfigError when unlike engines cannot share KV, or the policy would give one the role of the other."""
    if prefill == decode:
        return
    what = f"{decode.name} is unlike {prefill.name}"
    for fact in ("kv_token_bytes", "chunk_tokens"):
        if getattr(prefill, fact) != getattr(decode, fact):
            raise ConfigError("[engine]", "decode_profile", f"{what} in {fact}, so KV cannot move; take the same model")
    if policy.planner is not None or policy.first_roles == "mixed":
        why = "changes roles" if policy.planner is not None else "has mixed workers"
        fix = f"{what}, and policy {policy.name} {why}; leave it empty, or take a policy that keeps roles"
        raise ConfigError("[engine]", "decode_profile", fix)
