"""A tensor computed from parameters, kept while they stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class DerivedTensor:
    """Holds one tensor that is computed from parameters, and computes it anew when one of them has changed.

    A change is another object, another storage (``.to()``, ``.double()``) or an operation in place. What is written
    through ``parameter.data`` goes unseen: call ``clear``. Nothing is kept while a derivative may be asked for, while a
    graph is traced, or of parameters that are no longer plain ones (``torch.func.functional_call``). Copies and pickles
    are empty.
    """

    def __init__(self) -> None:
        self.clear()

    def __reduce__(self) -> tuple[type[DerivedTensor], tuple[()]]:
        return DerivedTensor, ()

    def clear(self) -> None:
        """Forget the tensor."""
        self._value: Tensor | None = None
        self._parameters: list[nn.Parameter] = []  # kept alive, so that no other object gets the same id
        self._key: tuple[object, ...] = ()

    def get(self, parameters: Sequence[nn.Parameter], setting: float, compute: Callable[[], Tensor]) -> Tensor:
        """``compute()``, or what it gave last time for the same parameters and the same ``setting``."""
        if not _may_keep(parameters):
            return compute()
        key = (setting, *((id(p), p._version, p.data_ptr()) for p in parameters))
        if self._value is None or key != self._key:
            with torch.inference_mode(False), torch.no_grad():  # a tensor of inference mode could not be used outside
                self._value = compute()
            self._parameters, self._key = list(parameters), key
        return self._value


def _may_keep(parameters: Sequence[nn.Parameter]) -> bool:
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if any(type(p) is not nn.Parameter or p.is_inference() for p in parameters):
        return False
    return not (torch.is_grad_enabled() and any(p.requires_grad for p in parameters))
