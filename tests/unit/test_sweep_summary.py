"""The table, the file and the plot that a sweep ends with, from runs written by hand."""

import csv
import json
from pathlib import Path

import pytest
from rich.console import Console

from tautnet.sweeps.folder import Run, SweepFolder
from tautnet.sweeps.pareto import non_dominated, plot
from tautnet.sweeps.summary import changed, printed, spread, summarise, write_csv

BOUND, KNOTS = "lipschitz/bound_p2", "spline/active_knots"
OBJECTIVES = {"val/acc": "maximize", BOUND: "minimize", KNOTS: "minimize"}


def run(name: str, overrides: str, **metrics: float) -> Run:
    names = {"val": "val/acc", "test": "test/acc", "bound": BOUND, "knots": KNOTS}
    return Run(Path(name), tuple(overrides.split()), {names[key]: value for key, value in metrics.items()})


RUNS = [
    run("0", "trainer=cpu norm=batch seed=0", val=0.7, test=0.5, bound=10.0),
    run("1", "trainer=cpu norm=batch seed=1", val=0.8, test=0.7, bound=float("inf")),
    run("2", "trainer=cpu norm=none seed=0 +activation.x=[1,2]", val=0.9, test=0.25),
]


def test_the_overrides_in_which_runs_differ():
    assert changed(RUNS) == [
        {"norm": "batch", "seed": "0", "activation.x": ""},
        {"norm": "batch", "seed": "1", "activation.x": ""},
        {"norm": "none", "seed": "0", "activation.x": "[1,2]"},
    ]
    assert changed(RUNS[:1]) == [{}]


def test_a_row_a_run(tmp_path):
    write_csv(RUNS, tmp_path / "sweep.csv")
    with (tmp_path / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["directory", "norm", "seed", "activation.x", BOUND, "test/acc", "val/acc"]
    assert [row["activation.x"] for row in rows] == ["", "", "[1,2]"]
    assert [row[BOUND] for row in rows] == ["10.0", "inf", ""]
    assert [row["directory"] for row in rows] == ["0", "1", "2"]


def text(runs: list[Run], objectives: dict[str, str] = OBJECTIVES) -> list[str]:
    console = Console(width=300)
    with console.capture() as captured:
        console.print(printed(runs, objectives))
    return captured.get().splitlines()


def test_runs_that_differ_in_the_seed_alone_are_one_row_and_the_best_comes_first():
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text(RUNS) if line.startswith("│")]
    assert rows == [
        ["none", "[1,2]", "1", "0.9", "0.2500", "–"],
        ["batch", "", "2", "0.75 ± 0.07071", "0.6000 ± 0.1414", "inf"],
    ]
    assert "val/acc" in text(RUNS)[2]
    assert "seed" not in text(RUNS)[2]


def test_a_minimised_objective_orders_the_other_way_and_what_lacks_it_comes_last():
    runs = [run("0", "norm=a", test=0.1), run("1", "norm=b", bound=3.0), run("2", "norm=c", bound=2.0)]
    order = [line.split("│")[1].strip() for line in text(runs, {BOUND: "minimize"}) if line.startswith("│")]
    assert order == ["c", "b", "a"]
    runs = [run("0", "norm=a", val=float("nan")), run("1", "norm=b", val=0.1), run("2", "norm=c", val=0.2)]
    assert [line.split("│")[1].strip() for line in text(runs) if line.startswith("│")] == ["c", "b", "a"]


def test_of_many_rows_the_best_are_printed():
    many = [run(str(n), f"norm={n}", val=n / 100) for n in range(60)]
    lines = text(many)
    assert sum(line.startswith("│") for line in lines) == 50
    assert any("10 more in sweep.csv" in line for line in lines)


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([], "–"),
        ([2.0], "2.00"),
        ([1.0, 3.0], "2.00 ± 1.41"),
        ([1.0, float("inf")], "inf"),
        ([1.0, float("nan")], "nan"),
    ],
)
def test_mean_and_sample_deviation(values, shown):
    assert spread(values, "{:.2f}") == shown


def test_a_point_is_dominated_by_one_that_is_nowhere_worse_and_somewhere_better():
    points = [(1, 5), (2, 6), (2, 5), (1, 4), (3, 6), (1, 5)]
    assert non_dominated(points, ["minimize", "maximize"]) == [True, True, False, False, False, True]
    assert non_dominated(points, ["maximize", "maximize"]) == [False, False, False, False, True, False]
    assert non_dominated([], ["minimize"]) == []


def test_the_plot_has_a_panel_for_each_measured_quantity(tmp_path):
    runs = [*RUNS, run("3", "norm=none seed=1", val=0.6, bound=2000.0, knots=12)]
    assert plot(runs, OBJECTIVES, tmp_path / "both.png")
    assert plot(RUNS, OBJECTIVES, tmp_path / "one.png")
    assert not plot([run("0", "norm=a", val=0.1)], OBJECTIVES, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    sizes = [int.from_bytes((tmp_path / name).read_bytes()[16:20]) for name in ("both.png", "one.png")]
    assert sizes[0] == 2 * sizes[1]


def test_a_directory_without_runs_gets_nothing(tmp_path, capsys):
    summarise(SweepFolder(tmp_path), OBJECTIVES)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_lists_of_words_are_shown_as_they_are(tmp_path, capsys):
    for name in "01":
        (tmp_path / name).mkdir()
        result = {
            "metrics": {"val/acc": 0.5},
            "overrides": [f"callbacks=[{'ema' * int(name)}]", f"x={':cat:[/b]' * int(name)}"],
        }
        (tmp_path / name / "result.json").write_text(json.dumps(result))
    summarise(SweepFolder(tmp_path), OBJECTIVES)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert ["[]", "", "1", "0.5"] in rows
    assert ["[ema]", ":cat:[/b]", "1", "0.5"] in rows
