"""Every name under which something is logged. Stable: dashboards and sweeps rely on them."""

from __future__ import annotations

TASK = "task"  # the loss without penalties, as a loss term

LIPSCHITZ_BOUND = "lipschitz/bound_p2"  # guaranteed
LIPSCHITZ_LOWER = "lipschitz/lower_p2"  # observed
LIPSCHITZ_LAYERS = "lipschitz/layers"  # the table and the figure
ACTIVE_KNOTS = "spline/active_knots"
TV2 = "spline/tv2"
FIT_SECONDS = "time/fit_seconds"

SPARSIFY_KNOTS_BEFORE = "sparsify/knots_before"
SPARSIFY_KNOTS_AFTER = "sparsify/knots_after"
SPARSIFY_METRIC_BEFORE = "sparsify/metric_before"  # on the validation data
SPARSIFY_METRIC_AFTER = "sparsify/metric_after"
SPARSIFY_SUP_CHANGE = "sparsify/sup_change"  # of a spline on its grid
SPARSIFY_OUTPUT_CHANGE = "sparsify/output_change_bound"  # guaranteed where inputs stay in the validated range


def loss(stage: str) -> str:
    """``train/loss``, ``val/loss``, ``test/loss``: the total in training, the task's alone elsewhere."""
    return f"{stage}/loss"


def accuracy(stage: str) -> str:
    """``train/acc``, ``val/acc``, ``test/acc``."""
    return f"{stage}/acc"


def r2(stage: str) -> str:
    """``train/r2``, ``val/r2``, ``test/r2``: 1 - (mean squared error) / variance of the targets."""
    return f"{stage}/r2"


def psnr(stage: str) -> str:
    """``train/psnr``, ``val/psnr``, ``test/psnr``: peak signal-to-noise ratio in dB, mean over the images."""
    return f"{stage}/psnr"


def loss_term(name: str) -> str:
    """``loss/<term>``: the weighted terms whose sum is ``train/loss``."""
    return f"loss/{name}"


def rate(role: str) -> str:
    """``lr/<role>``."""
    return f"lr/{role}"


def outside(path: str) -> str:
    """``spline/outside/<path>``: share of a layer's validation inputs outside the grid of its spline, 0 to 1."""
    return f"spline/outside/{path}"


def layer_bound(path: str) -> str:
    """``lipschitz/layer/<path>``."""
    return f"lipschitz/layer/{path}"


def lipschitz(quantity: str, p: float) -> str:
    """``lipschitz/<quantity>_p<p>``, p = 1, 2 or inf.

    Quantities: ``bound`` (the smallest guarantee), ``log10_bound``, the guarantees ``product``, ``folded``, ``lmi``
    (p = 2) and ``paper`` (dense nets), ``lower`` (observed), ``log10_lower``, ``tightness`` (bound / lower).
    """
    return f"lipschitz/{quantity}_p{p:g}"


def certified(norm: str, eps: float) -> str:
    """``certified/<norm>_<eps>``, norm l2 or linf: share of the samples that are right in the whole ball, proved."""
    return f"certified/{norm}_{eps:g}"


def attacked(norm: str, eps: float) -> str:
    """``attacked/<norm>_<eps>``: share of the samples that an attack within the ball leaves right, an observation."""
    return f"attacked/{norm}_{eps:g}"


CERTIFIED_CLEAN = "certified/clean"  # share of the same samples that are right without an attack


def spectrum(path: str) -> str:
    """``spectrum/<path>``: largest over median singular value of a layer's effective weight C_out x rest; 1 is flat."""
    return f"spectrum/{path}"


ICS_LAYERS = "ics/layers"  # the figure


def ics(path: str, quantity: str = "w1") -> str:
    """``ics/<path>``: exact W1 of a layer's outputs before and after an update; ``ics/<quantity>/<path>``: beside it.

    Quantities: ``lower`` (gap of the mean norms) <= w1 <= ``coupling`` (mean way of a sample) and <= ``upper`` (sum of
    the mean norms); ``sliced`` and ``per_unit``, both <= w1; ``relative`` (w1 / the mean norm, of both looks). At the
    number of the update in the loggers; among the final metrics the mean over all measured updates.
    """
    return f"ics/{path}" if quantity == "w1" else f"ics/{quantity}/{path}"


VCL_KURTOSIS = "vcl/kurtosis"  # median over the units of all watched layers; 3 is a Gaussian's, 1 the least


def vcl(path: str, quantity: str = "mean") -> str:
    """``vcl/<path>``: unweighted variance constancy term of a layer, mean over units and steps of an epoch.

    ``vcl/<quantity>/<path>`` beside it: ``max`` (largest term of a unit in the epoch), ``beta_min`` and ``beta_max``
    (range of beta at its end), ``kurtosis`` (median over the layer's units of what enters them in evaluation).
    """
    return f"vcl/{path}" if quantity == "mean" else f"vcl/{quantity}/{path}"


DISCRIMINANT_ALIGNMENT = "discriminant/alignment"  # |cos| of the first layer's weight and the LDA direction
DISCRIMINANT_RATIO = "discriminant/ratio"  # between over within variance of its projection, relative to the LDA's

SKIPPED_STEPS = "divergence/skipped_steps"  # whose loss or gradient was not finite, so far


# What a run and a sweep are summarised by: words, name, format
SUMMARY = (
    ("test accuracy", accuracy("test"), "{:.4f}"),
    ("test R2", r2("test"), "{:.4f}"),
    ("test PSNR, dB", psnr("test"), "{:.2f}"),
    *(
        (f"Lipschitz {words}, p = {p}", f"lipschitz/{quantity}_p{p}", "{:.4g}")
        for p in ("2", "1", "inf")
        for words, quantity in (("bound", "bound"), ("observed", "lower"))
    ),
    ("active knots", ACTIVE_KNOTS, "{:.0f}"),
    ("knots before sparsification", SPARSIFY_KNOTS_BEFORE, "{:.0f}"),
    ("knots after sparsification", SPARSIFY_KNOTS_AFTER, "{:.0f}"),
    ("seconds of training", FIT_SECONDS, "{:.1f}"),
)
