"""Which engine the command line means. Consumes flags and the config's `[engine]` table; produces a `Choice`.

The flags are the same for measuring and for checking.
"""

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from dopd import config as configs
from dopd.config import EngineConfig, real_engine
from dopd.errors import ConfigError
from dopd.perf.profile import Profile, named
from dopd.runtime.main import add_config_argument
from dopd.supervisor.model import TINY
from dopd_loadgen.arguments import count
from dopd_loadgen.profiling.subject import Subject, sim_subject, vllm_subject


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine that can be started: vLLM as `engine` says, or, if `profile` is there, its emulation."""

    engine: EngineConfig
    profile: Profile | None
    model: str

    @property
    def real(self) -> bool:
        """Whether it computes, in real time."""
        return self.profile is None

    async def start(self) -> Subject:
        """Start it, without a KV store. Raises EngineError when it cannot."""
        if self.profile is not None:
            return await sim_subject(self.profile)
        from dopd.engine.vllm import environment
        from dopd.engine.vllm.settings import settings_from

        alone = msgspec.structs.replace(self.engine, lmcache_port=0)
        return await vllm_subject(settings_from(alone, self.model, cpu=environment.on_cpu()))


def add_engine(parser: ArgumentParser, with_workload: bool = False) -> None:
    """Which engine. `with_workload`: `--max-model-len` is there already and says how long requests may be, too."""
    group = parser.add_argument_group("engine (as `dopd up` starts it, but alone and without a KV store)")
    add_config_argument(parser)
    group.add_argument("--engine", choices=("auto", "sim", "vllm"), help="auto: vLLM where it is installed")
    group.add_argument("--profile", metavar="NAME", help="what an emulated engine emulates: a name, .toml or .csv")
    group.add_argument("--model", metavar="MODEL", help="hub id or folder of a real one (default: a tiny random model)")
    group.add_argument("--max-running", type=count, metavar="N", help="requests in the engine together")
    group.add_argument("--max-step-tokens", type=count, metavar="N", help="token budget of a step")
    group.add_argument("--kv-cache-mb", type=count, metavar="MB", help="memory of the KV pool")
    real_only = ["model", "max_running", "max_step_tokens", "kv_cache_mb"]
    if not with_workload:
        group.add_argument("--max-model-len", type=count, metavar="N", help="longest prompt and answer together")
        real_only.append("max_model_len")
    parser.set_defaults(real_only=real_only)


def chosen(args: Namespace) -> Choice:
    """What `add_engine` read; where no model was named, the one that `dopd up` makes. Raises ConfigError."""
    config = configs.load(args.config)
    engine = _with_flags(config.engine, args)
    if not real_engine(engine):
        if given := [name for name in args.real_only if getattr(args, name) is not None]:
            flag = f"--{given[0].replace('_', '-')}"
            raise ConfigError("command line", flag, "is for a real engine; what an emulated one has is in its profile")
        return Choice(engine, named(engine.profile), "")
    if args.profile is not None:
        raise ConfigError("command line", "--profile", "is what an emulated engine emulates; add --engine sim")
    if engine.model:
        return Choice(engine, None, engine.model)
    from dopd.engine.vllm.tiny_model import ensure_tiny_model

    return Choice(engine, None, str(ensure_tiny_model(Path(config.cluster.state_dir, "models", TINY).absolute())))


def _with_flags(engine: EngineConfig, args: Namespace) -> EngineConfig:
    names = {"kind": "engine", "profile": "profile", "model": "model"}
    names |= {name: name for name in ("max_running", "max_step_tokens", "max_model_len", "kv_cache_mb")}
    given: dict[str, Any] = {key: value for key, flag in names.items() if (value := getattr(args, flag)) is not None}
    if args.profile is not None and args.engine is None:
        given["kind"] = "sim"
    return msgspec.structs.replace(engine, **given)
