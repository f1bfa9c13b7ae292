"""The Lipschitz bound of the deep-spline paper, for comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor, nn

from tautnet.activations.base import AbstractActivation
from tautnet.lipschitz.product import log_of, log_times, to_float
from tautnet.lipschitz.structure import Chain, Leaf, check_exponent, eval_mode, leaves, read

_SILENT = (nn.Flatten, nn.Identity, nn.Dropout)  # change no distance and have no place in the theorem
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class PaperBound:
    """A value of the paper's formula and what it is worth.

    Attributes:
        log_value: its natural logarithm; inf where the theorem does not apply.
        remark: empty for a guarantee; else why it is none.
    """

    log_value: float
    remark: str = ""

    @property
    def value(self) -> float:
        """The bound; inf beyond float range too."""
        return to_float(self.log_value)


def paper_bound(net: nn.Module, input_shape: Sequence[int], p: float = 1, as_published: bool = False) -> PaperBound:
    r"""C = prod_l ||W_l||_{q,inf} ||sigma_l||_{BV2,p}, 1/p + 1/q = 1, of a dense network.

    ||W||_{q,inf} is the largest q-norm of a row, ||sigma||_{BV2,p} the p-norm of the neurons' BV(2) norms. By Hölder
    and |f'| <= BV(2)(f) it bounds the l_p constant, far above the others here: a layer of N ReLUs counts 2 N for p = 1.

    Source: Aziznejad et al. (2020), Theorem 1; p = 1 is what the authors' code computes, general p is recalled and
    proved above. Difference: a dense layer without activation counts as one with identities, whose BV(2) norm is 1;
    the authors' code leaves it out, and with it the factor N_L of a last layer of N_L outputs.

    Args:
        net: dense layers and activations of this package.
        input_shape: shape of one sample.
        p: 1, 2 or inf.
        as_published: the authors' formula, which also passes over everything that is neither a linear map nor an
            activation, and takes a convolution's kernel for a matrix. Outside dense nets it is no guarantee.

    Raises:
        ValueError: another ``p``.
    """
    check_exponent(p)
    with torch.no_grad(), eval_mode(net), nn.utils.parametrize.cached():
        chain = read(net, input_shape)
        outside = [leaf.name for leaf in leaves(chain) if not _is_covered(leaf)]
        outside += ["branches"] if any(not isinstance(part, Leaf) for part in chain) else []
        bare = _without_activation(chain)
        total = 0.0
        for leaf in leaves(chain):
            total = log_times(total, log_of(_factor(leaf, p)))
    if as_published:
        missing = [f"{leaf.name} without activation" for leaf in bare if leaf.output_shape[0] > 1]
        remark = f"not a guarantee: {', '.join(outside + missing)}" if outside + missing else ""
        return PaperBound(total, remark)
    if outside:
        return PaperBound(inf, f"for dense networks only: {', '.join(outside)}")
    for leaf in bare:
        total += log_of(leaf.output_shape[0] ** (1 / p))  # as many identities
    return PaperBound(total)


def _is_covered(leaf: Leaf) -> bool:
    dense = leaf.kind == "Linear" and len(leaf.input_shape) == 1
    elementwise = isinstance(leaf.module, AbstractActivation) and len(leaf.input_shape) == 1
    return not leaf.unknown and (dense or elementwise or type(leaf.module) in _SILENT)


def _without_activation(chain: Chain) -> list[Leaf]:
    """Linear maps that no activation follows directly."""
    telling = [leaf for leaf in leaves(chain) if type(leaf.module) not in _SILENT]
    following = [*telling[1:], None]
    return [
        leaf
        for leaf, behind in zip(telling, following, strict=True)
        if isinstance(leaf.module, _WEIGHTED)
        and not (behind is not None and isinstance(behind.module, AbstractActivation))
    ]


def _factor(leaf: Leaf, p: float) -> float:
    q = {1: inf, 2: 2, inf: 1}[p]
    if isinstance(leaf.module, AbstractActivation):
        bv2 = leaf.module.bv2().to("cpu", torch.float64)
        # One function for all, or, as a fixed activation takes any number of channels, equal ones for another number.
        width = leaf.input_shape[0]
        return _norm(bv2[:1].expand(width) if len(bv2) != width else bv2, p)
    if isinstance(leaf.module, _WEIGHTED):
        rows_OI = leaf.module.weight.to("cpu", torch.float64).flatten(1)
        return max(_norm(row_I, q) for row_I in rows_OI)
    return 1.0


def _norm(values: Tensor, p: float) -> float:
    return float(torch.linalg.vector_norm(values, ord=p))
