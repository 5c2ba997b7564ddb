"""The `dopd` command: one table of dotted names, imported on use, so that it needs nothing it does not run.

Consumes the command line; produces the exit code of `main(arguments)` of the module that the table names.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence

from dopd.errors import ConfigError

COMMANDS = {
    "up": ("dopd.supervisor.up:main", "start the cluster of this machine (--demo: emulated GPUs and a load)"),
    "down": ("dopd.supervisor.down:main", "stop it"),
    "status": ("dopd.supervisor.down:status", "show its processes"),
    "kv-store": ("dopd.supervisor.kv_store:main", "run the KV store of a host whose workers are started one by one"),
    "top": ("dopd.top.command:main", "show workers, queues, latencies and decisions live"),
    "roles": ("dopd_planner.roles_cli:main", "show, set, pin and unpin workers' roles"),
    "decisions": ("dopd_planner.decisions_cli:decisions", "list what the planner decided of late"),
    "explain": ("dopd_planner.decisions_cli:explain", "tell in words why the planner decided so"),
    "profile": ("dopd_loadgen.profiling.command:main", "measure an engine's step times; check its emulation by them"),
    "compare": ("dopd_loadgen.compare.command:main", "compare policies on the same arrivals in virtual time"),
    "whatif": ("dopd_loadgen.compare.whatif:main", "replay a load in virtual time: what would the planner decide?"),
    "forecast": ("dopd_loadgen.forecasting.command:main", "back-test the forecaster's models on a trace"),
    "spans": ("dopd_loadgen.span_view:main", "make one file for ui.perfetto.dev of spans that were exported to files"),
    "key": ("dopd_gateway.keys_cli:main", "make an API key for the gateway"),
    "config": ("dopd.cli:config", "print the resolved configuration"),
    "clean": ("dopd.supervisor.down:clean", "remove the state that `dopd up` keeps between runs"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. 2 for a wrong command line, 130 after Ctrl-C, else what the command says."""
    name, *arguments = (sys.argv[1:] if argv is None else argv) or [""]
    if name in ("", "-h", "--help", "help"):
        print(usage())
        return 0 if name else 2
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean `dopd {close[0]}`?" if close else "`dopd --help` lists all"
        print(f"dopd: no command {name!r}; {hint}", file=sys.stderr)
        return 2
    module, _, function = COMMANDS[name][0].partition(":")
    try:
        return int(getattr(importlib.import_module(module), function)(arguments))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `dopd roles | head`
        sys.stderr.close()
        return 0


def usage() -> str:
    """All commands, one line each."""
    lines = [f"  dopd {name:<9} {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        ["LLM serving with prefill and decode on separate workers.", "", *lines, "", "`dopd COMMAND --help` says more."]
    )


def config(argv: Sequence[str]) -> int:
    """`dopd config`: what the file and the environment come to, as JSON, without the broker's password."""
    import argparse

    from msgspec.structs import replace

    from dopd import config as configs
    from dopd.bus.common import shown
    from dopd.runtime.main import add_config_argument

    parser = argparse.ArgumentParser(prog="dopd config", description="Print the resolved configuration.")
    add_config_argument(parser)
    try:
        found = configs.load(parser.parse_args(argv).config)
        cluster = replace(found.cluster, nats_url=shown(found.cluster.nats_url))
        print(configs.dump(replace(found, cluster=cluster)).decode())
    except ConfigError as error:
        print(f"dopd config: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
