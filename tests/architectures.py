"""Random networks of every layer type that has a Lipschitz bound, a search for violations of it, and trained states."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tautnet.activations import ELU, GELU, Absolute, GroupSort, LeakyReLU, LinearSpline, PReLU, ReLU
from tautnet.backbones.blocks import Concatenation, Residual, Scale
from tautnet.lipschitz import LipschitzReport, lipschitz_bound
from tautnet.normalizers import Aol, Aon, BatchNorm, Bjorck, GroupNorm, RmsNorm, Spectral, Unitize, layer_norm

Shape = tuple[int, ...]
MOST_VALUES = 160  # of a sample between layers, so that Jacobians are cheap


class Architect:
    """Draws networks; the same seed draws the same ones."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def input_shape(self) -> Shape:
        """Features, a signal, an image or a volume."""
        choice = self.random.choice
        sides = {0: (), 1: (choice([3, 6, 8]),), 2: (choice([3, 4, 6]), choice([3, 4, 5])), 3: (3, 2, 3)}
        dims = self.random.choices([0, 1, 2, 3], weights=[4, 2, 4, 1])[0]
        return (self.random.randint(1, 6 if dims == 0 else 3), *sides[dims])

    def net(self, shape: Shape) -> nn.Sequential:
        """A chain of one to six parts."""
        return nn.Sequential(*self.chain(shape, self.random.randint(1, 6), depth=0)[0])

    def chain(self, shape: Shape, length: int, depth: int) -> tuple[list[nn.Module], Shape]:
        """Parts in a row, and the shape behind them."""
        parts: list[nn.Module] = []
        for _ in range(length):
            part, behind = self.part(shape, depth)
            parts.append(part)
            shape = behind
        return parts, shape

    def part(self, shape: Shape, depth: int) -> tuple[nn.Module, Shape]:
        """A part that takes ``shape``, its parameters random, and the shape behind it."""
        for _ in range(50):
            makers = [self.linear, self.linear, self.activation, self.activation, self.norm, self.other]
            if depth < 2:
                makers.append(self.branches)
            layer = self.random.choice(makers)(shape, depth)
            if layer is None:
                continue
            try:
                with torch.no_grad():
                    output = layer.eval()(torch.zeros(1, *shape))
            except (RuntimeError, ValueError):  # a window larger than the image, one value to normalise
                continue
            behind = tuple(output.shape[1:])
            # A maximum over padding alone is -inf, and torch's gradient of it writes outside of its memory.
            if behind and 0 < math.prod(behind) <= MOST_VALUES and output.isfinite().all():
                self.randomise(layer)
                return layer, behind
        return nn.Identity(), shape

    def branches(self, shape: Shape, depth: int) -> nn.Module:
        """A sum or a concatenation of chains."""
        random = self.random
        chains = [nn.Sequential(*self.chain(shape, random.randint(1, 3), depth + 1)[0]) for _ in range(2)]
        kind = random.choice(["identity", "residual", "concatenation"])
        if kind == "concatenation":
            return Concatenation(*chains, *([nn.Identity()] if random.random() < 0.3 else []))
        sum_of = Residual(chains[0], nn.Identity() if kind == "identity" else chains[1])
        with torch.no_grad():  # a sum that broadcasts is unbounded
            x = torch.zeros(1, *shape)
            return sum_of if sum_of.body(x).shape == sum_of.shortcut(x).shape else Concatenation(*chains)

    def linear(self, shape: Shape, depth: int) -> nn.Module | None:
        """A dense layer, a convolution or a transposed one, sometimes parametrised."""
        random = self.random
        channels, *sides = shape
        if not sides or random.random() < 0.1:
            layer: nn.Module = nn.Linear(shape[-1], random.randint(1, 6), bias=random.random() < 0.5)
            return self.parametrised(layer)
        dims = len(sides)
        groups = random.choice([1, 1, 1, channels])
        outputs = groups * random.randint(1, 3)
        settings = {"stride": random.choice([1, 1, 2, 3]), "dilation": random.choice([1, 1, 2]), "groups": groups}
        kernel = tuple(random.randint(1, 4) for _ in range(dims))
        if random.random() < 0.3:
            made = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
            return made(
                channels,
                outputs,
                kernel,
                padding=random.randint(0, 1),
                output_padding=random.choice([0, 0, 1]),
                **settings,
            )
        made = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        mode = random.choice(["zeros", "zeros", "zeros", "circular", "reflect", "replicate"])
        padding = tuple(random.randint(0, 2) for _ in range(dims))
        if random.random() < 0.15:
            settings["stride"], padding = (
                1,
                "valid" if 2 in kernel or 4 in kernel else "same",
            )  # torch warns of even ones
        return self.parametrised(made(channels, outputs, kernel, padding=padding, padding_mode=mode, **settings))

    def parametrised(self, layer: nn.Module) -> nn.Module:
        """The layer, in one of four cases with a constrained weight."""
        if self.random.random() < 0.75 or getattr(layer, "padding_mode", "zeros") != "zeros":
            return layer
        self.randomise(layer)
        ours: list[Callable[[nn.Module], nn.Module]] = [Bjorck(), Aol(), Aon(gain="per_row")]
        if not isinstance(layer, nn.Conv3d):  # with dilation its grid of frequencies takes seconds
            ours.append(Spectral())
        stock = [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal]
        try:
            return self.random.choice(ours + stock if isinstance(layer, nn.Linear) else ours + stock[:2])(layer)
        except ValueError:  # this layer takes no such parametrization
            return layer

    def activation(self, shape: Shape, depth: int) -> nn.Module:
        """Own or stock."""
        channels = shape[0]
        sharing = self.random.choice(["channel", "layer"])
        own = [
            ReLU,
            Absolute,
            lambda c: GroupSort(c, 3),
            GELU,
            PReLU,
            lambda c: LeakyReLU(c, self.random.choice([-1.5, 0.2])),
            lambda c: ELU(c, 1.7),
            lambda c: LinearSpline(c, 7, 1.5, sharing=sharing),
            lambda c: LinearSpline(c, 6, 1.0, sharing=sharing, linear_term=True, learn_scale=True),
            lambda c: LinearSpline(c, 9, 2.0, slope_min=-0.5, slope_max=1.5, init="relu", learn_scale=True),
        ]
        stock = [
            *(nn.ReLU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.Mish, nn.Hardtanh, nn.Hardswish, nn.Softsign, nn.GELU, nn.SELU),
            *(
                nn.LogSigmoid,
                lambda: nn.Softplus(threshold=40),
                nn.ReLU6,
                nn.Tanhshrink,
                nn.Softshrink,
                nn.ELU,
                nn.CELU,
                nn.Hardsigmoid,
            ),
            *(nn.PReLU, nn.LeakyReLU, lambda: nn.PReLU(channels), lambda: nn.Softmax(dim=1)),
        ]
        if self.random.random() < 0.65:
            return self.random.choice(own)(channels)
        return self.random.choice(stock)()

    def norm(self, shape: Shape, depth: int) -> nn.Module:
        """Own or stock, for eval mode."""
        random, channels = self.random, shape[0]
        eps = random.choice([1e-3, 0.1])
        batch = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[len(shape) - 1]
        makers: list[Callable[[], nn.Module]] = [
            lambda: BatchNorm(channels),
            lambda: Unitize(channels, eps=eps, norm_axes=random.choice(["sample", "pixel"])),
            lambda: Unitize(channels, eps=eps, norm_scale=random.choice(["l2", "rms", "per_pixel"])),
            lambda: batch(channels),
            lambda: nn.RMSNorm(shape, eps=eps),
            lambda: RmsNorm(channels, eps=eps),
        ]
        if shape[-1] > 1:  # of a single value only the rounding would be left
            makers += [
                lambda: nn.LayerNorm(shape, eps=eps),
                lambda: nn.LayerNorm(shape[-1:], eps=eps),
                lambda: nn.GroupNorm(1, channels, eps=eps),
                lambda: layer_norm(channels, eps=eps),
                lambda: GroupNorm(channels, group_size=random.choice([1, channels]), eps=eps),
                lambda: nn.GroupNorm(channels if len(shape) > 1 else 1, channels, eps=eps),
            ]
        if len(shape) > 1:
            instance = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[len(shape) - 2]
            makers.append(lambda: instance(channels, eps=eps, affine=True, track_running_stats=random.random() < 0.5))
        return random.choice(makers)()

    def other(self, shape: Shape, depth: int) -> nn.Module:
        """Pools, pads, reshapings."""
        random = self.random
        makers: list[Callable[[], nn.Module]] = [nn.Flatten, nn.Identity, nn.Dropout, lambda: Scale(random.gauss(0, 2))]
        dims = len(shape) - 1
        across = dims < 3 and random.random() < (0.1 if dims else 0.3)  # a pool that takes the channels for a dimension
        if dims or across:
            window = {
                "kernel_size": random.randint(1, 3),
                "stride": random.randint(1, 3),
                "padding": random.randint(0, 1),
            }
            ceil = random.random() < 0.3
            mean = {"ceil_mode": ceil, "count_include_pad": random.random() < 0.5}
            at = dims - 1 + across
            sides = tuple(random.randint(1, 4) for _ in range(at + 1))
            pads = tuple(random.randint(-1 if random.random() < 0.1 else 0, 2) for _ in range(2 * (at + 1)))
            positive = tuple(map(abs, pads))
            makers += [
                lambda: (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[at](
                    **window, dilation=random.randint(1, 2), ceil_mode=ceil
                ),
                lambda: (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[at](**window, **mean),
                lambda: (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[at](sides),
                lambda: (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)[at](sides),
                lambda: (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)[at](pads),
                lambda: (nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d)[at](positive),
                lambda: (nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d)[at](positive),
                lambda: (nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d)[at](positive),
                lambda: nn.Upsample(scale_factor=2),
            ]
        if dims == 2:
            makers += [
                lambda: nn.PixelUnshuffle(2),
                lambda: nn.PixelShuffle(2),
                lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
                lambda: nn.Unfold(2, padding=1),
            ]
        return random.choice(makers)()

    @torch.no_grad()
    def randomise(self, layer: nn.Module) -> None:
        """Parameters and running statistics on scales of their own, an entry or a row sometimes zero."""
        if isinstance(layer, nn.Sequential | Residual | Concatenation):
            return  # its parts were
        parametrised = nn.utils.parametrize.is_parametrized(layer)
        for parameter in layer.parameters():
            if not parametrised:
                parameter.normal_().mul_(10 ** self.random.uniform(-1, 0.5))
            if self.random.random() < 0.1 and not parametrised:
                parameter[: len(parameter) // 2] = 0
        for name, buffer in layer.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.1, 2.0)


def lengths(x: Tensor, p: float) -> Tensor:
    """The p-norm of every sample."""
    return torch.linalg.vector_norm(x.flatten(1), ord=p, dim=1)


def steepest(net: nn.Module, shape: Shape, p: float, num_pairs: int, num_steps: int) -> float:
    """Largest ratio of distances seen while pairs of points climb it, and largest Jacobian norm at two of them.

    NaN of a network that gives NaN, for which only an infinite bound is right.
    """
    x = (
        torch.randn(num_pairs, *shape) * torch.logspace(-1.5, 1, num_pairs).view(-1, *[1] * len(shape))
    ).requires_grad_()
    distance = torch.logspace(1, -2, num_pairs)[torch.randperm(num_pairs)].view(-1, *[1] * len(shape))
    y = (x.detach() + torch.randn_like(x) * distance).requires_grad_()
    optimizer = torch.optim.Adam([x, y], lr=0.1)
    largest, tolerance = 0.0, 1e3 * torch.finfo(x.dtype).eps
    for _ in range(num_steps):
        fx, fy = net(torch.cat([x, y])).chunk(2)
        rise, run = lengths(fx - fy, p), lengths(x - y, p)
        ratio = rise / run
        # A difference of nearly equal values is rounding, not an observation.
        told = (run > 1e-3 * lengths(x, p)) & (rise > 1e3 * tolerance * (lengths(fx, p) + lengths(fy, p)))
        if told.any():
            largest = max(largest, ratio[told].max().item())
        optimizer.zero_grad()
        (-(ratio + 1e-9).log()[ratio.isfinite()].sum()).backward()
        for tensor in (x, y):
            assert tensor.grad is not None
            tensor.grad.nan_to_num_(0.0, 0.0, 0.0)
        optimizer.step()
    with torch.no_grad():
        best = ratio.nan_to_num(0.0, 0.0, 0.0).argsort(descending=True)[:2]
    jacobians = jacobians_of_samples(net, x.detach()[best])
    if not jacobians.isfinite().all():
        return math.nan  # a weight is not finite, as of a zero row that weight normalisation divides by 0
    return max(largest, torch.linalg.matrix_norm(jacobians, ord=p).max().item())


def jacobians_of_samples(net: nn.Module, x: Tensor) -> Tensor:
    """Of every sample, (N, outputs, inputs): one copy of it for each output, all in one pass."""
    with torch.no_grad():
        num_outputs = net(x[:1]).numel()
    copies = x.repeat_interleave(num_outputs, 0).requires_grad_()
    each_output = torch.eye(num_outputs).repeat(len(x), 1)
    (rows,) = torch.autograd.grad(net(copies).flatten(1), copies, each_output)
    return rows.view(len(x), num_outputs, -1)


def hunt(seed: int, dtype: torch.dtype, num_pairs: int = 12, num_steps: int = 8) -> tuple[LipschitzReport, float, str]:
    """One random network and exponent: its report, the largest observation, and what it is."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        torch.default_generator.manual_seed(seed)  # of the CPU alone, which is much quicker
        architect = Architect(seed)
        shape = architect.input_shape()
        net = architect.net(shape).eval().requires_grad_(False)
        p = architect.random.choice([1, 2, 2, math.inf])
        report = lipschitz_bound(net, shape, p=p)
        observed = steepest(net, shape, p, num_pairs, num_steps)
    finally:
        torch.set_default_dtype(previous)
    return report, observed, f"seed {seed}, {dtype}, p = {p}, input {shape}: {net}"


def trained_a_little(net: nn.Module, *shape: int) -> nn.Module:
    """Statistics that are not the initial ones, parameters away from them, in eval mode."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for _ in range(3):
            net.train()(2 * torch.randn(16, *shape) + 1)
    return net.eval()
