"""`python -m dopd_proto.generate [--check]`: the files that are made from the message classes.

Consumes: SUBJECTS and all message classes. Produces: proto/README.md, proto/schema/*.json, tests/golden/wire.json.
With `--check` nothing is written; the exit status is 1 if a file is not what would be written.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from dopd_proto.base import Message
from dopd_proto.codec import encode
from dopd_proto.examples import all_messages, example
from dopd_proto.subjects import SUBJECTS

_ROOT = Path(__file__).resolve().parents[2]
_SCHEMAS = Path("proto/schema")
GOLDEN = Path("tests/golden/wire.json")

_HEAD = """\
# Messages

Made by `make gen` from the classes in `dopd_proto`; do not edit.

Everything that crosses a process border is one of these messages: MessagePack on NATS, a map with the message's name
under `type`. Fields that have their default are left out. `schema/` has the same as JSON Schema (bytes are base64
there); `tests/golden/wire.json` has the bytes of one example each.

New fields need a default, and receivers ignore fields that they do not know. A breaking change is `v2` in the subject.
"""


def files() -> dict[Path, str]:
    """The text of every generated file by its path from the repository's root."""
    made = {Path("proto/README.md"): _readme(), GOLDEN: _golden()}
    for kind in all_messages():
        made[_SCHEMAS / f"{kind.__name__}.json"] = _json(msgspec.json.schema(kind))
    return made


def differences(root: Path = _ROOT) -> list[str]:
    """One line for each file that is missing, out of date or no longer made."""
    made = files()
    found = []
    for path, text in made.items():
        if not (root / path).is_file():
            found.append(f"{path}: missing")
        elif (root / path).read_text(encoding="utf-8") != text:
            found.append(f"{path}: out of date")
    return found + [f"{path}: no message has this name" for path in _stale(root, made)]


def write(root: Path = _ROOT) -> None:
    made = files()
    for path in _stale(root, made):
        (root / path).unlink()
    for path, text in made.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")


def _stale(root: Path, made: dict[Path, str]) -> list[Path]:
    present = sorted(path.relative_to(root) for path in (root / _SCHEMAS).glob("*.json"))
    return [path for path in present if path not in made]


def _readme() -> str:
    subjects = [
        (f"`{_readable(s.template)}`", " · ".join(_link(kind) for kind in s.types), f"{s.sender} → {s.receiver}")
        for s in SUBJECTS
    ]
    messages = [(_link(kind), (kind.__doc__ or "").strip().splitlines()[0]) for kind in all_messages()]
    return "\n".join(
        [
            _HEAD,
            "## Subjects\n",
            _table(("subject", "message", "from → to"), subjects),
            "\n## Messages\n",
            "Those without a subject of their own are answers, sent to the asker's inbox, or parts of others.\n",
            _table(("message", "what it says"), messages),
            "",
        ]
    )


def _golden() -> str:
    return _json({kind.__name__: encode(example(kind)).hex() for kind in all_messages()})


def _link(kind: type[Message]) -> str:
    return f"[{kind.__name__}](schema/{kind.__name__}.json)"


def _readable(template: str) -> str:
    return template.replace("{", "<").replace("}", ">")


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines: list[tuple[str, ...]] = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dopd_proto.generate", description="Write the generated files.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is out of date")
    if not parser.parse_args(arguments).check:
        write()
        return 0
    found = differences()
    for line in found:
        print(line, file=sys.stderr)
    if found:
        print("run `make gen` and commit what it writes", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
