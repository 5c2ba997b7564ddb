"""`dopd key new NAME`: make an API key.

Consumes the command line; produces the key, which is shown this once, and the line for `gateway.api_keys_file`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dopd_gateway.keys import line_of, new_key
from dopd_gateway.rate import Limit


def main(argv: Sequence[str]) -> int:
    """`dopd key`: 0 made, 1 the file cannot be written, 2 wrong command line."""
    args = _parser().parse_args(argv)
    limit = None if args.requests_per_s is None else Limit(args.requests_per_s, args.burst)
    key = new_key()
    try:
        line = line_of(args.name, key, limit)
    except ValueError as error:
        print(f"dopd key: {error}", file=sys.stderr)
        return 2
    if args.file is None:
        print(f"key, shown this once:\n{key}\nline for gateway.api_keys_file:\n{line}")
        return 0
    try:
        _append(args.file, line)
    except OSError as error:
        print(f"dopd key: {args.file}: {error.strerror}", file=sys.stderr)
        return 1
    print(key)
    return 0


def _append(file: Path, line: str) -> None:
    """In one write, so that a gateway never reads half of it."""
    ends = not file.exists() or file.stat().st_size == 0 or file.read_bytes().endswith(b"\n")
    with file.open("a", encoding="utf-8") as out:
        out.write(f"{'' if ends else chr(10)}{line}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dopd key", description="Make an API key for the gateway's HTTP port.")
    actions = parser.add_subparsers(metavar="new", required=True)
    new = actions.add_parser("new", help="print a new key and the line for the file")
    new.add_argument("name", metavar="NAME", help="whose it is: limits count by name; several keys may have one name")
    new.add_argument("--file", type=Path, metavar="FILE", help="append the line there, and print the key alone")
    new.add_argument(
        "--requests-per-s",
        type=_rate,
        metavar="N",
        help="a limit of its own, in place of requests_per_s_per_key (0: none)",
    )
    new.add_argument(
        "--burst", type=_burst, default=10, metavar="N", help="with it: so many at once after a pause (10)"
    )
    return parser


def _rate(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError("0 or more")
    return value


def _burst(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return value
