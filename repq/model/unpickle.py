"""Reads pickle streams of checkpoints without Python's unpickler: nothing that a stream names is imported or called.

A small machine goes through the opcodes (``pickletools`` splits the stream, it executes nothing) and builds the plain
values of :mod:`repq.model.pickled`. An opcode that no checkpoint needs (extension registry, out-of-band buffers, old
instance forms …) is refused, and so is a stream that asks for an unreasonable amount of work.

Source: the opcode documentation in CPython's ``pickletools``.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO

from repq.model.pickled import (
    RefusedError,
    Storage,
    admit,
    as_set,
    call,
    extend,
    new_node,
    persistent,
    set_items,
    set_state,
)

MAX_OPERATIONS = 4_000_000
"""Operations plus items copied by calls: far more than any known checkpoint has (about 100,000 for YOLOv6-N)."""


def read_stream(stream: bytes | BinaryIO, storages: dict[str, Storage] | None = None) -> Any:
    """Interpret one pickle up to its STOP and return the plain value that it describes.

    A binary file is left at the byte after STOP. Classes of ``module_packages()`` come back as :class:`Node`, storage
    references as :class:`Storage` (all of them are also put into ``storages`` by key), tensors as
    :class:`StoredTensor`.

    Raises:
        RefusedError: an unknown name, opcode or call, or a stream that is malformed or truncated.
    """
    machine = _Machine({} if storages is None else storages)
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            machine.spend(1)
            machine.step(opcode.name, argument)
        return machine.result()
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise RefusedError(f"a malformed or truncated pickle ({type(error).__name__}: {str(error)[:120]})") from None


# --- the machine -----------------------------------------------------------------------------------------------------

_LITERALS = frozenset(
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
    | {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": set}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS = frozenset({"BINPUT", "LONG_BINPUT", "PUT"})
_GETS = frozenset({"BINGET", "LONG_BINGET", "GET"})


class _Machine:
    """The stack, the marks and the memo. The memo is a dict, so that a large index costs no memory."""

    def __init__(self, storages: dict[str, Storage]) -> None:
        self.storages = storages
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.spent = 0

    def spend(self, operations: int) -> None:
        self.spent += operations
        if self.spent > MAX_OPERATIONS:
            raise RefusedError(f"more than {MAX_OPERATIONS} pickle operations")

    def result(self) -> Any:
        if self.marked or len(self.stack) != 1:
            raise RefusedError("a malformed pickle (values are left over at its end)")
        return self.stack[0]

    def step(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        if opcode in _GETS:
            stack.append(self.memo[argument])
        elif opcode in _PUTS:
            self.memo[argument] = stack[-1]
        elif opcode in _LITERALS:
            stack.append(argument)
        elif opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode])
        elif opcode in _EMPTY:
            stack.append(_EMPTY[opcode]())
        elif opcode in _TUPLES:
            stack[-_TUPLES[opcode] :] = [tuple(self._pop(_TUPLES[opcode], keep=True))]
        elif opcode == "REDUCE":
            callee, arguments = self._pop(2)
            self.spend(sum(len(item) for item in arguments if isinstance(item, (str, list, tuple, dict, set))))
            stack.append(call(callee, arguments))
        elif opcode == "BUILD":
            target, state = self._pop(2)
            self.spend(len(state))
            stack.append(set_state(target, state))
        elif opcode == "NEWOBJ":
            kind, arguments = self._pop(2)
            stack.append(new_node(kind, arguments))
        elif opcode == "BINPERSID":
            outside = persistent(stack.pop())
            if isinstance(outside, Storage):
                self.storages[outside.key] = outside
            stack.append(outside)
        elif opcode == "GLOBAL":
            stack.append(admit(*argument.split(" ")))
        elif opcode == "STACK_GLOBAL":
            stack.append(admit(*self._pop(2)))
        elif opcode == "SETITEM":
            key, value = self._pop(2)
            set_items(stack[-1], [key, value])
        elif opcode == "APPEND":
            value = stack.pop()
            extend(stack[-1], [value])
        elif opcode == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif opcode == "POP":
            stack.pop()
        elif opcode == "DUP":
            stack.append(stack[-1])
        elif opcode == "MARK":
            self.marked.append(stack)
            self.stack = []
        elif opcode in ("TUPLE", "LIST", "DICT", "FROZENSET", "SETITEMS", "APPENDS", "ADDITEMS", "POP_MARK"):
            self._close_mark(opcode)
        elif opcode == "PROTO" and argument > 5:
            raise RefusedError(f"pickle protocol {argument}")
        elif opcode not in ("PROTO", "FRAME", "STOP"):
            raise RefusedError(f"the pickle operation {opcode}, which no checkpoint uses")

    def _pop(self, count: int, keep: bool = False) -> list[Any]:
        if len(self.stack) < count:
            raise RefusedError("a malformed pickle (its stack runs empty)")
        values = self.stack[-count:]
        if not keep:
            del self.stack[-count:]
        return values

    def _close_mark(self, opcode: str) -> None:
        items = self.stack
        self.stack = stack = self.marked.pop()
        if opcode == "TUPLE":
            stack.append(tuple(items))
        elif opcode == "LIST":
            stack.append(items)
        elif opcode == "DICT":
            stack.append(set_items({}, items))
        elif opcode == "FROZENSET":
            stack.append(as_set(items))
        elif opcode == "SETITEMS":
            set_items(stack[-1], items)
        elif opcode == "APPENDS":
            extend(stack[-1], items)
        elif opcode == "ADDITEMS":
            if not isinstance(stack[-1], set):
                raise RefusedError("a malformed pickle (set items for something that is no set)")
            stack[-1].update(as_set(items))
