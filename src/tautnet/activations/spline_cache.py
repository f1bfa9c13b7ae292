"""A tensor computed from parameters, kept while they stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class DerivedTensor:
    """Holds one tensor that is computed from parameters, and computes it anew when one of them has changed.

    A change is another object, another storage (``.to()``, ``.double()``) or an operation in place. What is written
    through ``parameter.data`` goes unseen: call ``clear``. Nothing is kept while a derivative may be asked for, while a
    graph is traced, or of parameters that are no longer plain ones (``torch.func.functional_call``); and what was kept
    before that is forgotten, because the fused optimizers change parameters without a trace. Copies and pickles are
    empty. Several threads may ask at once.
    """

    def __init__(self) -> None:
        self.clear()

    def __reduce__(self) -> tuple[type[DerivedTensor], tuple[()]]:
        return DerivedTensor, ()

    def clear(self) -> None:
        """Forget the tensor."""
        self._kept: _Kept | None = None  # read and replaced as a whole, for the threads

    def get(self, parameters: Sequence[nn.Parameter], setting: float, compute: Callable[[], Tensor]) -> Tensor:
        """``compute()``, or what it gave last time for the same parameters and the same ``setting``."""
        if not _may_keep(parameters):
            self.clear()
            return compute()
        key = (setting, *((id(p), p._version, p.data_ptr()) for p in parameters))
        kept = self._kept
        if kept is None or kept.key != key:
            with torch.inference_mode(False), torch.no_grad():  # a tensor of inference mode could not be used outside
                kept = self._kept = _Kept(key, list(parameters), compute())
        return kept.value


class _Kept(NamedTuple):
    key: tuple[object, ...]
    parameters: list[nn.Parameter]  # kept alive, so that no other object gets the same id
    value: Tensor


def _may_keep(parameters: Sequence[nn.Parameter]) -> bool:
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if any(type(p) is not nn.Parameter or p.is_inference() for p in parameters):
        return False
    return not (torch.is_grad_enabled() and any(p.requires_grad for p in parameters))
