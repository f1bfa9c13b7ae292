"""Several optimizers as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer


class JointOptimizer(Optimizer):
    """Steps several optimizers over disjoint parameters as one optimizer with all their parameter groups.

    Schedules, gradient clipping and checkpoints see one optimizer, so Lightning's automatic optimization stays usable
    with, say, SGD for the weights and Adam for the splines, the recipe of Bohra et al. (2020). The groups and the state
    are shared with the members, whose own ``state_dict`` is not used.

    Args:
        members: the optimizers, one or more.

    Raises:
        ValueError: a parameter group added later, since no member would step it.
    """

    def __init__(self, members: Sequence[Optimizer]) -> None:
        self.members = list(members)
        self._complete = False
        super().__init__([group for member in members for group in member.param_groups], {})
        self._complete = True
        for member in members:
            self.state.update(member.state)
        self._share()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Used by the constructor alone."""
        if self._complete:
            raise ValueError("a joint optimizer takes no further parameter group: add it to a member beforehand")
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        """For copies: the members too."""
        return super().__getstate__() | {"members": self.members, "_complete": True}

    def _share(self) -> None:
        start = 0
        for member in self.members:
            stop = start + len(member.param_groups)
            member.state, member.param_groups = self.state, self.param_groups[start:stop]
            start = stop

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over loaded groups and state, for the members too."""
        super().__setstate__(state)
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every member; the closure is evaluated once, before all of them."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for member in self.members:
            member.step()
        return loss


def current_rates(optimizer: Optimizer) -> Mapping[str, float]:
    """Learning rate of each role's parameter group."""
    return {group["role"]: float(group["lr"]) for group in optimizer.param_groups}
