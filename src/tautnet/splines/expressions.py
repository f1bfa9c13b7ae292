"""Formulas of one variable as text: what they may say, and their values."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

FUNCTIONS: Mapping[str, Callable[..., Tensor]] = {
    **{"abs": torch.abs, "sign": torch.sign, "sqrt": torch.sqrt, "exp": torch.exp, "log": torch.log, "sin": torch.sin},
    **{"tanh": torch.tanh, "sigmoid": torch.sigmoid, "arctan": torch.arctan, "softplus": F.softplus, "silu": F.silu},
    **{"gelu": F.gelu, "elu": F.elu, "relu": torch.relu, "leaky_relu": F.leaky_relu, "softshrink": F.softshrink},
    "clamp": torch.clamp,
}
_OPERATIONS: Mapping[type[ast.operator], Callable[[Tensor, Tensor], Tensor]] = {
    **{ast.Add: torch.add, ast.Sub: torch.sub, ast.Mult: torch.mul, ast.Div: torch.div, ast.Pow: torch.pow},
}
_LONGEST = 1000  # characters; far more than a formula needs


def evaluate(expression: str, x: Tensor) -> Tensor:
    """Values of a formula such as ``0.83*tanh(1.2*x - 0.31) + 0.02`` at x, of x's shape and dtype.

    It is Python's notation, with the names of ``torch`` and ``torch.nn.functional``; nothing else is executed.

    Args:
        expression: numbers, x, ``+ - * / **``, parentheses, and abs, sign, sqrt, exp, log, sin, tanh, sigmoid, arctan,
            softplus, silu, gelu, elu, relu, leaky_relu(x, slope), softshrink(x, threshold), clamp(x, lo, hi).
        x: floating point.

    Raises:
        ValueError: an expression with anything else in it.
    """
    try:
        if len(expression) > _LONGEST:
            raise SyntaxError(f"more than {_LONGEST} characters")
        return _value(ast.parse(expression, mode="eval").body, x).expand_as(x)
    except (SyntaxError, TypeError, ValueError, RecursionError) as error:
        accepted = f"numbers, x, + - * / **, and {', '.join(sorted(FUNCTIONS))} are accepted"
        raise ValueError(f"expression={expression[:80]}: {error}; {accepted}") from error


def _value(node: ast.expr, x: Tensor) -> Tensor:
    match node:
        case ast.Constant(value=float() | int() as number) if not isinstance(number, bool):
            return x.new_tensor(number, dtype=x.dtype)
        case ast.Name(id="x"):
            return x
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, x)
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _OPERATIONS:
            return _OPERATIONS[type(operator)](_value(left, x), _value(right, x))
        case ast.Call(func=ast.Name(id=name), args=[first, *others], keywords=[]) if name in FUNCTIONS:
            return FUNCTIONS[name](_value(first, x), *(float(ast.literal_eval(other)) for other in others))
    raise SyntaxError(f"{ast.unparse(node)} is not known")


def number(value: float) -> str:
    """The shortest text of a number, exact."""
    return repr(float(value)).removesuffix(".0")


def line(slope: float, offset: float) -> str:
    """``slope*x + offset`` without what does nothing."""
    factor = {1.0: "x", -1.0: "-x", 0.0: ""}.get(slope, f"{number(slope)}*x")
    return plus(factor, offset)


def plus(text: str, offset: float) -> str:
    """``text + offset``."""
    if offset == 0:
        return text or "0"
    return f"{text} {'-' if offset < 0 else '+'} {number(abs(offset))}" if text else number(offset)


def times(factor: float, text: str) -> str:
    """``factor*text``."""
    return {1.0: text, -1.0: f"-{text}"}.get(factor, f"{number(factor)}*{text}")
