"""The part of the Common Expression Language (CEL) that selects devices in practice.

kube-scheduler evaluates the selectors of DeviceClasses and claims in CEL. To count the devices of a
node, the operator has to evaluate them as well. An expression outside of this part is an
`UnsupportedExpressionError`: it is refused, never guessed. The names are those of the Kubernetes
documents ("Common Expression Language in Kubernetes", device selectors of resource.k8s.io/v1).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from llmtrain_core.api.base import read_quantity

MAX_DEPTH = 32
"""Nested parentheses, negations and operators of an expression."""

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<text>"(?:[^"\\\n]|\\["'\\])*"|'(?:[^'\\\n]|\\["'\\])*')
    |(?P<number>[0-9]+(?![.\w]))
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<sign>&&|\|\||==|!=|<=|>=|[<>!()\[\],.\-])
    )""",
    re.VERBOSE,
)
_END = ("end", "")
_ESCAPE = re.compile(r"\\(.)")


class UnsupportedExpressionError(ValueError):
    """An expression that is not of the supported part of CEL."""


class Version(NamedTuple):
    """The value of an attribute of type version, which is no text."""

    text: str


Value = bool | int | str | Version
"""The value of an attribute."""


class Selectable(Protocol):
    """A device as expressions see it. Attributes and capacities are by domain and name."""

    @property
    def driver(self) -> str:
        """Name of the driver."""
        ...

    @property
    def attributes(self) -> Mapping[tuple[str, str], Value]:
        """Values of the attributes."""
        ...

    @property
    def capacity(self) -> Mapping[tuple[str, str], Fraction]:
        """Quantities that the device has."""
        ...


class _EvaluationError(Exception):
    """A value that does not exist or has another type: CEL has no value for the expression."""


class _Domain(NamedTuple):
    """Attributes or capacities of one domain."""

    values: Mapping[tuple[str, str], Any]
    name: str


_Node = Callable[[Selectable], Any]


@lru_cache(maxsize=1024)
def compile_selector(expression: str) -> Callable[[Selectable], bool]:
    """Return the function that tells whether a device meets a condition.

    A condition without a value, such as one on an attribute that the device does not have, is not
    met. Raises UnsupportedExpressionError.
    """
    parser = _Parser(_tokens(expression))
    node = parser.disjunction(0)
    parser.expect_end()

    def meets(device: Selectable) -> bool:
        try:
            return node(device) is True
        except _EvaluationError:
            return False

    return meets


def size_of(expression: str) -> int:
    """Return the number of tokens of an expression: the time of its evaluation grows with it.

    Raises UnsupportedExpressionError.
    """
    return len(_tokens(expression)) - 1


def _tokens(expression: str) -> list[tuple[str, str]]:
    found, position = [], 0
    text = expression.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _unsupported(text[position:].strip()[:20])
        assert match.lastgroup is not None
        found.append((match.lastgroup, match[match.lastgroup]))
        position = match.end()
    return [*found, _END]


def _unsupported(what: str) -> UnsupportedExpressionError:
    return UnsupportedExpressionError(f"{what!r} is not supported here" if what else "it is empty")


class _Parser:
    """A parser by recursive descent. Each method returns the function that computes its value."""

    def __init__(self, tokens: Sequence[tuple[str, str]]):
        self._tokens = tokens
        self._position = 0

    def expect_end(self) -> None:
        """Refuse anything after the expression."""
        if self._tokens[self._position] != _END:
            raise _unsupported(self._tokens[self._position][1])

    def _take(self, *signs: str) -> str:
        """Return the next token if it is one of these, and go on behind it; else nothing."""
        kind, text = self._tokens[self._position]
        if kind in ("sign", "name") and text in signs:
            self._position += 1
            return text
        return ""

    def _require(self, sign: str) -> None:
        if not self._take(sign):
            raise _unsupported(self._tokens[self._position][1] or "the end of the expression")

    def _next(self, kind: str) -> str:
        found, text = self._tokens[self._position]
        if found != kind:
            raise _unsupported(text or "the end of the expression")
        self._position += 1
        return text

    def disjunction(self, depth: int) -> _Node:
        """Parse operands of `||`."""
        if depth > MAX_DEPTH:
            raise UnsupportedExpressionError("it is nested too deeply")
        parts = [self._conjunction(depth)]
        while self._take("||"):
            parts.append(self._conjunction(depth))
        return parts[0] if len(parts) == 1 else _junction(parts, decisive=True)

    def _conjunction(self, depth: int) -> _Node:
        parts = [self._relation(depth)]
        while self._take("&&"):
            parts.append(self._relation(depth))
        return parts[0] if len(parts) == 1 else _junction(parts, decisive=False)

    def _relation(self, depth: int) -> _Node:
        left = self._unary(depth)
        operator = self._take("==", "!=", "<", "<=", ">", ">=", "in")
        return _comparison(operator, left, self._unary(depth)) if operator else left

    def _unary(self, depth: int) -> _Node:
        if depth > MAX_DEPTH:
            raise UnsupportedExpressionError("it is nested too deeply")
        if self._take("!"):
            operand = self._unary(depth + 1)
            return lambda device: not _bool(operand(device))
        if self._take("-"):
            number = -int(self._next("number"))
            return lambda _: number
        return self._postfix(self._primary(depth), depth)

    def _primary(self, depth: int) -> _Node:
        kind, text = self._tokens[self._position]
        if kind == "text":
            self._position += 1
            return _constant(_ESCAPE.sub(r"\1", text[1:-1]))
        if kind == "number":
            self._position += 1
            return _constant(int(text))
        if self._take("("):
            inner = self.disjunction(depth + 1)
            self._require(")")
            return inner
        if self._take("["):
            items = self._arguments("]", depth)
            return lambda device: [item(device) for item in items]
        if self._take("true", "false"):
            return _constant(text == "true")
        if self._take("has"):
            (operand,) = self._call(1, depth)
            return _exists(operand)
        if self._take("quantity"):
            (operand,) = self._call(1, depth)
            return lambda device: _quantity(operand(device))
        if self._take("device"):
            return self._field_of_device()
        raise _unsupported(text or "the end of the expression")

    def _field_of_device(self) -> _Node:
        self._require(".")
        field = self._next("name")
        if field == "driver":
            return lambda device: device.driver
        if field not in ("attributes", "capacity"):
            raise _unsupported(f"device.{field}")
        self._require("[")
        domain = _ESCAPE.sub(r"\1", self._next("text")[1:-1])
        self._require("]")
        if field == "attributes":
            return lambda device: _Domain(device.attributes, domain)
        return lambda device: _Domain(device.capacity, domain)

    def _postfix(self, node: _Node, depth: int) -> _Node:
        while True:
            if self._take("["):
                node = _member(node, _ESCAPE.sub(r"\1", self._next("text")[1:-1]))
                self._require("]")
            elif self._take("."):
                name = self._next("name")
                is_call = self._tokens[self._position] == ("sign", "(")
                node = (
                    _method(name, node, *self._call(1, depth)) if is_call else _member(node, name)
                )
            else:
                return node

    def _call(self, count: int, depth: int) -> list[_Node]:
        self._require("(")
        found = self._arguments(")", depth)
        if len(found) != count:
            raise UnsupportedExpressionError(f"a function takes {count} argument")
        return found

    def _arguments(self, end: str, depth: int) -> list[_Node]:
        found: list[_Node] = []
        if self._take(end):
            return found
        found.append(self.disjunction(depth + 1))
        while self._take(","):
            found.append(self.disjunction(depth + 1))
        self._require(end)
        return found


def _constant(value: Value) -> _Node:
    return lambda _: value


def _junction(parts: Sequence[_Node], *, decisive: bool) -> _Node:
    """Return `||` or `&&`. As in CEL, an operand that decides hides those without a value."""

    def value(device: Selectable) -> bool:
        failed: _EvaluationError | None = None
        for part in parts:
            try:
                if _bool(part(device)) is decisive:
                    return decisive
            except _EvaluationError as error:
                failed = error
        if failed is not None:
            raise failed
        return not decisive

    return value


def _comparison(operator: str, left: _Node, right: _Node) -> _Node:
    def value(device: Selectable) -> bool:
        one, other = left(device), right(device)
        if operator == "in":
            return _contains(other, one)
        if operator in ("==", "!="):
            return _equal(one, other) == (operator == "==")
        if type(one) is not type(other) or not isinstance(one, (int, str)):
            raise _EvaluationError
        order = (one > other) - (one < other)
        found: bool = {"<": order < 0, "<=": order <= 0, ">": order > 0, ">=": order >= 0}[operator]
        return found

    return value


def _contains(group: Any, item: Any) -> bool:
    if isinstance(group, _Domain) and isinstance(item, str):
        return (group.name, item) in group.values
    if not isinstance(group, list):
        raise _EvaluationError
    return any(_equal(item, other) for other in group)


def _equal(one: Any, other: Any) -> bool:
    """Compare two values. CEL has no value for the comparison of two types."""
    if type(one) is not type(other) or isinstance(one, (_Domain, list)):
        raise _EvaluationError
    return bool(one == other)


def _member(node: _Node, name: str) -> _Node:
    def value(device: Selectable) -> Any:
        parent = node(device)
        if not isinstance(parent, _Domain):
            raise _EvaluationError
        try:
            return parent.values[parent.name, name]
        except KeyError:
            raise _EvaluationError from None

    return value


def _exists(operand: _Node) -> _Node:
    def value(device: Selectable) -> bool:
        try:
            operand(device)
        except _EvaluationError:
            return False
        return True

    return value


_OF_TEXT: Mapping[str, Callable[[str, str], bool]] = {
    "startsWith": str.startswith,
    "endsWith": str.endswith,
    "contains": str.__contains__,
}
_OF_QUANTITY: Mapping[str, Callable[[Fraction, Fraction], bool | int]] = {
    "compareTo": lambda one, other: (one > other) - (one < other),
    "isLessThan": lambda one, other: one < other,
    "isGreaterThan": lambda one, other: one > other,
}


def _method(name: str, node: _Node, argument: _Node) -> _Node:
    method: Callable[[Any, Any], Any] | None = _OF_TEXT.get(name) or _OF_QUANTITY.get(name)
    if method is None:
        raise _unsupported(f".{name}()")
    kind = str if name in _OF_TEXT else Fraction

    def value(device: Selectable) -> Any:
        one, other = node(device), argument(device)
        if type(one) is not kind or type(other) is not kind:
            raise _EvaluationError
        return method(one, other)

    return value


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _EvaluationError
    return value


def _quantity(value: Any) -> Fraction:
    found = read_quantity(value) if isinstance(value, str) else None
    if found is None:
        raise _EvaluationError
    return found
