"""Coefficients as TOML. Consumes nested tables of strings, numbers and lists; produces lines for tomllib."""

from collections.abc import Iterator, Mapping
from typing import Any


def rounded(value: Any) -> Any:
    """Numbers to five digits, as they are written: what is then generated is what the file generates."""
    if isinstance(value, Mapping):
        return {name: rounded(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(inner) for inner in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def written(table: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """The lines; plain values come before tables, as TOML wants them."""
    for name, value in table.items():
        if not isinstance(value, Mapping):
            yield f"{name} = {_literal(value)}"
    for name, value in table.items():
        if isinstance(value, Mapping):
            if any(not isinstance(inner, Mapping) for inner in value.values()):
                yield f"\n[{path}{name}]"
            yield from written(value, f"{path}{name}.")


def _literal(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_literal, value))}]"
    return repr(value)
