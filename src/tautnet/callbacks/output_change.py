"""Upper bound of how far a network's output moves when its splines change."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf, sqrt
from typing import Any

import torch
from torch import Tensor, nn

from tautnet.activations import LinearSpline
from tautnet.backbones.blocks import Residual
from tautnet.factories import may_be_changed_by_hooks
from tautnet.lipschitz import lipschitz_bound
from tautnet.lipschitz.structure import eval_mode
from tautnet.models.ranks import gathered
from tautnet.splines.difference import largest_difference

Ranges = dict[nn.Module, tuple[Tensor, Tensor]]  # of the inputs that each curve of a spline met


@torch.no_grad()
def output_change_bound(before: nn.Module, after: nn.Module, inputs: Iterable[Tensor]) -> float:
    """Upper bound of ||after(x) - before(x)||_2 for two networks that differ in their splines alone.

    It holds for every x of ``inputs``, and beyond them for every x of such a shape that keeps the input of each curve
    of ``before`` in the range that it visited on ``inputs``. Outside, border lines drift apart without limit.

    From layer to layer the bound e of the distance between the two networks' values becomes L e + d: L the Lipschitz
    bound of the layer of ``after``, and for a spline d = (sum over its curves of n_c sup |after_c - before_c|^2)^(1/2),
    the sup over the visited range, n_c the positions of a curve. Branches of a ``Residual`` add. As with
    ``lipschitz_bound``, the statement is about real arithmetic in eval mode.

    Args:
        before: the network whose inputs are looked at.
        after: a changed copy of it.
        inputs: batches (N, *), at least one; gone through once. On several ranks all of theirs count.

    Returns:
        The bound; inf where a layer behind a change has no Lipschitz bound, a spline hides in an unknown container, or
        a layer has forward hooks.

    Raises:
        ValueError: no inputs, networks of different structure, or other differences than in splines.
    """
    ranges, samples = _look(before, inputs)
    with eval_mode(before), eval_mode(after):
        values = [_change(before, after, x, 0.0, ranges)[0] for x in samples]
    own = max(value if value >= 0 else inf for value in values)  # NaN bounds nothing
    return max(gathered(own))  # ranks may have met other shapes


def _look(net: nn.Module, inputs: Iterable[Tensor]) -> tuple[Ranges, list[Tensor]]:
    """Ranges that the splines' inputs visit, and one sample of every shape."""
    ranges: Ranges = {}
    samples: dict[torch.Size, Tensor] = {}
    splines = [module for module in net.modules() if isinstance(module, LinearSpline)]
    handles = [spline.register_forward_pre_hook(_recorder(ranges)) for spline in splines]
    try:
        with eval_mode(net):
            for x in inputs:
                samples.setdefault(x.shape[1:], x[:1])
                net(x)
    finally:
        for handle in handles:
            handle.remove()
    if not samples:
        raise ValueError("inputs: at least one batch")
    return _of_all_ranks(ranges), list(samples.values())


def _of_all_ranks(ranges: Ranges) -> Ranges:
    """The range over the ranks of each spline; all ranks run the same network."""
    of_ranks = gathered([(lo_C.cpu(), hi_C.cpu()) for lo_C, hi_C in ranges.values()])
    joined: Ranges = {}
    for (spline, own), pairs in zip(ranges.items(), zip(*of_ranks, strict=True), strict=True):
        lows, highs = zip(*pairs, strict=True)
        joined[spline] = (torch.stack(lows).amin(0).to(own[0]), torch.stack(highs).amax(0).to(own[0]))
    return joined


def _recorder(ranges: Ranges) -> Callable[[nn.Module, Any], None]:
    def record(spline: nn.Module, inputs: Any) -> None:
        assert isinstance(spline, LinearSpline)
        lo_C, hi_C = inputs[0].reshape(len(inputs[0]), spline.num_curves, -1).movedim(1, 0).flatten(1).aminmax(dim=1)
        old_lo_C, old_hi_C = ranges.get(spline, (lo_C, hi_C))
        ranges[spline] = (torch.minimum(lo_C, old_lo_C), torch.maximum(hi_C, old_hi_C))

    return record


def _change(before: nn.Module, after: nn.Module, x: Tensor, change: float, ranges: Ranges) -> tuple[float, Tensor]:
    """Bound of the change behind a module from that before it, and the output for ``x``, whose shape comes next."""
    if type(before) is not type(after) or before._modules.keys() != after._modules.keys():
        raise ValueError(f"after: {type(after).__name__} where before has {type(before).__name__}")
    if may_be_changed_by_hooks(before) or may_be_changed_by_hooks(after):  # they may change the function
        return inf, before(x)
    if type(before) is nn.Sequential:
        for child, changed in zip(before._modules.values(), after._modules.values(), strict=True):
            assert child is not None
            assert changed is not None
            change, x = _change(child, changed, x, change, ranges)
        return change, x
    if type(before) is Residual and type(after) is Residual:
        body, y = _change(before.body, after.body, x, change, ranges)
        shortcut, z = _change(before.shortcut, after.shortcut, x, change, ranges)
        return (body + shortcut if y.shape == z.shape else inf), y + z
    return _leaf_change(before, after, x, change, ranges), before(x)


def _leaf_change(before: nn.Module, after: nn.Module, x: Tensor, change: float, ranges: Ranges) -> float:
    if isinstance(before, LinearSpline) and isinstance(after, LinearSpline):
        own_C = largest_difference(before, after, *ranges[before])
        change = _passed_on(after, x, change)
        return change + sqrt(float(own_C.square().sum()) * (x[0].numel() // before.num_curves))
    _check_same(before, after)
    if any(
        isinstance(module, LinearSpline) or may_be_changed_by_hooks(module)
        for module in (*before.modules(), *after.modules())
    ):
        return inf
    return _passed_on(after, x, change)


def _passed_on(layer: nn.Module, x: Tensor, change: float) -> float:
    """What a layer makes of a change of its input. Before the first change any layer will do."""
    return change * lipschitz_bound(layer, x.shape[1:]).total if change != 0 else 0.0


def _check_same(before: nn.Module, after: nn.Module) -> None:
    old, new = _tensors(before), _tensors(after)
    for name in old.keys() | new.keys():
        if name not in old or name not in new or not torch.equal(old[name], new[name]):
            raise ValueError(f"after: {name} of a {type(after).__name__} differs, and splines alone may")


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, those of splines inside left out."""
    inside = [path for path, child in module.named_modules() if isinstance(child, LinearSpline)]
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[0] not in inside}
