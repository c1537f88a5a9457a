"""What agents may call: a calculator, a table. Nothing that a model wrote is run as code."""

from __future__ import annotations

import ast
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from kd_lightning.errors import KDError

LONGEST = 200
"""Characters of an expression."""

LARGEST = 1e100
"""No intermediate result is greater: what follows stays cheap."""


class ToolError(Exception):
    """A call that cannot be done; the agent is told why and may repair it."""


class Executor(ABC):
    """One tool: what it says of itself, and what a call gives."""

    @property
    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """`name`, `description` and `parameters` (a JSON schema): what agents are told."""

    @abstractmethod
    def run(self, arguments: Mapping[str, Any]) -> str:
        """The result of a call; `ToolError` where it is wrong."""


class Calculator(Executor):
    """Arithmetic on numbers: + - * / // % ** and parentheses."""

    @property
    def spec(self) -> dict[str, Any]:
        expression = {"type": "string", "description": "such as (3 + 4) * 2"}
        return {
            "name": "calculator",
            "description": "Works out an arithmetic expression.",
            "parameters": {
                "type": "object",
                "properties": {"expression": expression},
                "required": ["expression"],
            },
        }

    def run(self, arguments: Mapping[str, Any]) -> str:
        told = arguments.get("expression")
        if not isinstance(told, str) or not 0 < len(told) <= LONGEST:
            raise ToolError(f"expression must be a text of at most {LONGEST} characters")
        try:
            value = _value(ast.parse(told.strip(), mode="eval").body)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ToolError("the expression cannot be read") from None
        except ZeroDivisionError:
            raise ToolError("division by zero") from None
        except OverflowError:
            raise ToolError("the result is too large") from None
        return f"{value:.12g}" if isinstance(value, float) else str(value)


class Lookup(Executor):
    """A table of names and what is known of them."""

    def __init__(self, table: dict[str, str], name: str = "lookup") -> None:
        """Store the settings.

        Args:
            table: Name to what is told of it; case and outer spaces do not matter.
            name: What agents call the tool.
        """
        self.table = table
        self.name = name
        if not table:
            raise KDError("Lookup: the table is empty: write at least one entry")

    @property
    def spec(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "description": "Tells what is known of a name.",
            "parameters": {
                "type": "object",
                "properties": {"key": {"type": "string", "description": "the name"}},
                "required": ["key"],
            },
        }

    def run(self, arguments: Mapping[str, Any]) -> str:
        wanted = arguments.get("key")
        if not isinstance(wanted, str):
            raise ToolError("key must be a text")
        known = {name.strip().casefold(): told for name, told in self.table.items()}
        if wanted.strip().casefold() not in known:
            raise ToolError("there is no such entry")
        return known[wanted.strip().casefold()]


_TWO: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_ONE: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def _value(node: ast.expr) -> int | float:
    """The value of a tree of numbers and signs; anything else is refused."""
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return _bounded(value)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _ONE:
            return _bounded(_ONE[type(op)](_value(operand)))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _TWO:
            a, b = _value(left), _value(right)
            if isinstance(op, ast.Pow) and (abs(b) > 400 or abs(a) ** abs(float(b)) > LARGEST):
                raise OverflowError
            return _bounded(_TWO[type(op)](a, b))
        case _:
            raise ToolError("only numbers and + - * / // % ** are known")


def _bounded(value: Any) -> int | float:
    if isinstance(value, complex) or abs(value) > LARGEST:
        raise OverflowError
    return value  # type: ignore[no-any-return]
