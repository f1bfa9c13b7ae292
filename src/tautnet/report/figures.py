"""The figures of a run, each by a name: those of its curves, and those of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import log

from tautnet import logkeys
from tautnet.lipschitz import LipschitzReport, lipschitz_bound
from tautnet.report import charts
from tautnet.report.charts import Named
from tautnet.report.learned import Learned, activation_figure, activations_of, spectra_figure
from tautnet.report.look import sampled
from tautnet.report.records import RunRecord
from tautnet.report.scalars import Curve

MEASURES = {"acc": "accuracy", "r2": "R2", "psnr": "PSNR, dB"}
_STAGES = ("train", "val", "test")


def of_curves(record: RunRecord) -> Iterator[Named]:
    """Figures of what was logged over time, as far as it was."""
    for draw in (_losses, _measures, _lipschitz, _splines, _per_layer, _shift):
        yield from draw(record.curves)


def of_weights(learned: Learned, most_curves: int = 16, most_layers: int = 24) -> Iterator[Named]:
    """Figures of a checkpoint's network: activations, spectra, constants by layer.

    Args:
        learned: the run's networks.
        most_curves: panels of an activation.
        most_layers: activations that are drawn; of more some that are evenly spread.
    """
    paths = list(activations_of(learned.after.model.net))
    for path in sampled(paths, most_layers):
        what = f"Activation {path or 'of the network'}: output over input, before and after training"
        yield f"activation_{path}", what, activation_figure(learned, path, most_curves)
    spectra = spectra_figure(learned)
    if spectra is not None:
        yield "spectra", "Singular values of the weights by layer", spectra
    report = bound_of(learned)
    which = " (sparse)" * (learned.sparse is not None)
    what = f"Lipschitz constant of each layer{which}; bound of the whole network: {report.total:.4g}"
    yield "lipschitz_layers", what, charts.by_layer(report.layers, report.total, report.p)


def bound_of(learned: Learned) -> LipschitzReport:
    """The guaranteed bound of the tested network, p = 2."""
    return lipschitz_bound(learned.tested, learned.after.model.input_shape)


def of_certificates(record: RunRecord) -> Iterator[Named]:
    """The figure of certified and attacked accuracy, if the run has certificates."""
    rows = certificate_rows(record)
    if rows:
        yield "certificates", "Certified and attacked accuracy over the radius", charts.certificates(rows)


def certificate_rows(record: RunRecord) -> list[dict[str, float | str]]:
    """Rows of the run's certificates; none, with a problem noted, if the file is not as it was written."""
    try:
        return [
            {"norm": str(row["norm"])} | {key: float(row[key]) for key in ("eps", "clean", "attacked", "certified")}
            for row in record.certificates.get("rows", ())
        ]
    except (AttributeError, LookupError, TypeError, ValueError):
        record.problems.append(f"{record.directory}: its certificates are not as they were written; left out")
        return []


def _chosen(curves: dict[str, Curve], names: Sequence[str], label: Callable[[str], str] = str) -> dict[str, Curve]:
    """Those that are there and are more than a point."""
    return {label(name): curves[name] for name in names if name in curves and len(curves[name].steps) > 1}


def _below(curves: dict[str, Curve], prefix: str) -> dict[str, Curve]:
    """``<prefix><path>`` by path, without quantities below a further slash."""
    names = [name for name in curves if name.startswith(prefix) and "/" not in name.removeprefix(prefix)]
    return _chosen(curves, names, lambda name: name.removeprefix(prefix))


def _losses(curves: dict[str, Curve]) -> Iterator[Named]:
    terms = [name for name in curves if name.startswith(logkeys.loss_term(""))]
    found = _chosen(curves, [logkeys.loss("train"), *terms, logkeys.loss("val")])
    if found:
        yield "loss", "Loss and its terms over the updates", charts.over_time(found, "Loss and its terms", "loss", True)


def _measures(curves: dict[str, Curve]) -> Iterator[Named]:
    for measure, words in MEASURES.items():
        found = _chosen(curves, [f"{stage}/{measure}" for stage in _STAGES])
        if found:
            title = words[0].upper() + words[1:]
            yield measure, f"{title} over the updates", charts.over_time(found, title, words)


def _lipschitz(curves: dict[str, Curve]) -> Iterator[Named]:
    for p in ("1", "2", "inf"):
        kinds = {"bound": "bound, guaranteed", "lower": "observed", "product": "product of the layers"}
        names = {logkeys.lipschitz(kind, float(p)): words for kind, words in kinds.items()}
        found = _chosen(curves, list(names), names.__getitem__)
        bound, product = found.get("bound, guaranteed"), found.get("product of the layers")
        if bound is not None and product is not None and _close(bound, product):
            del found["product of the layers"]
        if found:
            title = f"Lipschitz constant, p = {p}"
            yield (
                f"lipschitz_p{p}",
                f"{title}: guaranteed bound and observed value",
                charts.over_time(found, title, "constant", True),
            )


def _close(a: Curve, b: Curve) -> bool:
    pairs = zip(a.values, b.values, strict=False)
    return all(x == y or (x > 0 and y > 0 and abs(log(x) - log(y)) < 0.02) for x, y in pairs)


def _splines(curves: dict[str, Curve]) -> Iterator[Named]:
    for name, key, title in (("knots", logkeys.ACTIVE_KNOTS, "Active knots"), ("tv2", logkeys.TV2, "TV(2) of splines")):
        found = _chosen(curves, [key], lambda _, title=title: title)  # type: ignore[misc]
        if found:
            yield name, f"{title} over the updates", charts.over_time(found, title, title.lower())


def _per_layer(curves: dict[str, Curve]) -> Iterator[Named]:
    found = _below(curves, logkeys.layer_bound(""))
    if found:
        title = "Lipschitz constants of the layers"
        yield (
            "lipschitz_layers_over_time",
            f"{title} over the updates",
            charts.over_time(found, title, "constant", True),
        )
    found = _below(curves, logkeys.spectrum(""))
    if found:
        title = "Largest over median singular value"
        yield "spectrum_over_time", f"{title} by layer over the updates", charts.over_time(found, title, "ratio", True)


def _shift(curves: dict[str, Curve]) -> Iterator[Named]:
    found = _below(curves, logkeys.ics(""))
    if found:
        title = "Internal covariate shift"
        what = f"{title} by layer over the updates"
        yield "ics", what, charts.over_time(found, title, "W1 that an update moves", True)
    found = {path: curve for path, curve in _below(curves, logkeys.vcl("")).items() if path != "kurtosis"}
    if found:
        title = "Variance constancy term"
        yield "vcl", f"{title} by layer over the updates", charts.over_time(found, title, "mean over the units", True)
    found = _chosen(curves, [logkeys.VCL_KURTOSIS], lambda _: "kurtosis")
    if found:
        title = "Kurtosis of pre-activations"
        yield "kurtosis", f"{title} over the updates", charts.over_time(found, title, "median; 3 is a Gaussian's")
