"""What an object keeps in memory, looked at from outside: how much it remembers, and no secret."""

import gc
import sys
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import TypeVar

T = TypeVar("T")
# What these lead to is the program's.
_SHARED = (type, ModuleType, FunctionType, BuiltinFunctionType)


def held(owner: object, kind: type[T]) -> list[T]:
    """All objects of that kind that `owner` leads to, each once."""
    found: list[T] = []
    seen: set[int] = set()
    waiting = [owner]
    while waiting:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, _SHARED):
            continue
        seen.add(id(each))
        if isinstance(each, kind):
            found.append(each)
        waiting += gc.get_referents(each)
        if isinstance(each, dict):
            waiting += each  # a string as a key is not among them
    return found


def memory_of(owner: object, *, but: object = None) -> int:
    """The memory that its byte strings take, without those that `but` leads to as well."""
    others = {id(each) for each in held(but, bytes)}
    data = [*held(owner, bytearray), *held(owner, bytes)]
    return sum(sys.getsizeof(each) for each in data if each and id(each) not in others)
