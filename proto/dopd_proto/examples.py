"""One filled example of every message, made from its types alone: what the golden bytes are the bytes of.

Consumes: the message classes. Produces: instances in which every field differs from its default where it can.
"""

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import inspect

import dopd_proto
from dopd_proto.base import Foreign, Message, pack_tokens


def all_messages() -> list[type[Message]]:
    """Every message class, by module and in the order of its declaration, without the bases of others."""
    modules = [
        importlib.import_module(f"dopd_proto.{found.name}")
        for found in pkgutil.iter_modules(dopd_proto.__path__)
        # It would be imported a second time while it runs.
        if found.name != "generate"
    ]
    kinds = [
        kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Message) and kind.__module__ == module.__name__
    ]
    return [kind for kind in kinds if kind not in (Message, Foreign) and not kind.__subclasses__()]


def example(kind: type[Message]) -> Message:
    """The filled example; the same in every process."""
    value: Message = _struct(inspect.type_info(kind), "")
    return value


def _struct(info: Any, name: str) -> Any:
    values = {}
    for number, field in enumerate(info.fields):
        values[field.name] = _value(field.type, field.name, number, field.default)
    return info.cls(**values)


def _value(info: Any, name: str, number: int, default: Any = msgspec.NODEFAULT) -> Any:
    if isinstance(info, inspect.LiteralType):
        return next(value for value in reversed(info.values) if value != default)
    if isinstance(info, inspect.BoolType):
        return default is not True
    if isinstance(info, inspect.UnionType):
        return _value(next(kind for kind in info.types if not isinstance(kind, inspect.NoneType)), name, number)
    if isinstance(info, inspect.ListType | inspect.VarTupleType):
        items = [_value(info.item_type, name, number + extra) for extra in range(2)]
        return items if isinstance(info, inspect.ListType) else tuple(items)
    if isinstance(info, inspect.DictType):
        key = number if isinstance(info.key_type, inspect.IntType) else f"{name}-key"
        return {key: _value(info.value_type, name, number)}
    if isinstance(info, inspect.TupleType):
        return tuple(_value(kind, name, number + extra) for extra, kind in enumerate(info.item_types))
    return _MAKERS[type(info)](info, name, number)


# Integers of more than one byte and floats that are no integers, so that the bytes say something.
_MAKERS: dict[type[Any], Callable[[Any, str, int], Any]] = {
    inspect.StrType: lambda info, name, number: f"{name}-{number}",
    inspect.IntType: lambda info, name, number: 300 + number,
    inspect.AnyType: lambda info, name, number: f"any-{number}",
    inspect.FloatType: lambda info, name, number: number + 0.125,
    inspect.BytesType: lambda info, name, number: pack_tokens([number, 70_000]),
    inspect.StructType: lambda info, name, number: _struct(info, name),
}
