"""The runner: its gate, its rows, its tables."""

import json
from pathlib import Path

import pytest
import torch
from hyperfast.benchmarks import (
    coord_grid,
    ensemble,
    ensemble_plan,
    gauge,
    hyper_lstm,
    kde,
    nn_entropy,
    profile,
    report,
    run,
    target_net,
    tiled_conv,
)
from hyperfast.benchmarks.case import Case

import hyperfast as hf
from hyperfast import cli
from hyperfast.models import targets

CPU = torch.device("cpu")


def tiny(ours=torch.sin) -> Case:
    return Case(
        family="target_net", name="tiny", shape={"n": 10}, inputs=lambda device: (torch.linspace(0, 1, 1000, device=device),), ours=ours,
        reference=torch.sin, baselines={"eager": torch.sin, "careful": lambda x: torch.sin(x) * 1.0}, flops=1000, bytes=8000,
        gradient_of=(0,), compiled=(),
    )  # fmt: skip


def test_a_wrong_kernel_fails_the_gate():
    run.gate(tiny(), CPU)
    with pytest.raises(ValueError, match="exceeds"):
        run.gate(tiny(lambda x: torch.sin(x) * 1.001), CPU)
    with pytest.raises(ValueError, match="exceeds"):  # right values, wrong gradient
        run.gate(tiny(lambda x: torch.sin(x).detach() + x * 0.0), CPU)


def test_rows_and_tables(tmp_path):
    environment = run.environment(CPU)
    rows = []
    for backward in (False, True):
        measured = run.measure(tiny(), CPU, [], quick=True, backward=backward)
        rows.append({"family": "target_net", "case": "tiny", "shape": {}, "dtype": "float32", "max_error": 1e-7,
                     "eager_error": 1e-7, **environment, **measured})  # fmt: skip
    assert set(rows[0]["ratios"]) == {"eager", "careful"}
    assert all(set(times) == {"p20", "p50", "p80", "min"} for times in rows[0]["times"].values())
    assert rows[0]["share_of_copy"] > 0
    path = tmp_path / "results.json"
    report.store(path, rows)
    report.store(path, rows[:1])  # replaces its own row only
    assert len(json.loads(path.read_text())) == 2
    assert "target_net/tiny" in report.table(rows)


CASES = [
    *target_net.cases(),
    *ensemble.cases(),
    nn_entropy.cases()[0],
    gauge.cases()[0],
    tiled_conv.cases()[0],
    kde.cases()[1],
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_every_case_passes_its_gate(case):
    """Every implementation, too: a baseline that computes something else would be a straw man."""
    run.gate(case, CPU)
    inputs = case.inputs(CPU)
    small = tuple(t[:4] for t in inputs)
    expected = run._values(case, case.reference, tuple(t.double() for t in small))
    for name, baseline in case.baselines.items():
        for got, value in zip(run._values(case, baseline, small), expected, strict=True):
            torch.testing.assert_close(got, value, rtol=1e-4, atol=1e-4, msg=name)


def test_coord_grid_cases_and_their_baselines():
    assert {case.name for case in coord_grid.cases()} == {"512x512", "96x96"}
    case = coord_grid._case("32x32", 24, 2)
    run.gate(case, CPU)
    inputs = case.inputs(CPU)
    expected = run._values(case, case.reference, tuple(t.double() for t in inputs))
    for name, baseline in case.baselines.items():
        for got, value in zip(run._values(case, baseline, inputs), expected, strict=True):
            torch.testing.assert_close(got, value, rtol=1e-3, atol=1e-4, msg=name)


def test_hyper_lstm_cases_and_their_baselines():
    case = next(case for case in hyper_lstm.cases() if case.name == "ptb B=1")
    run.gate(case, CPU)
    inputs = case.inputs(CPU)
    expected = case.reference(*inputs)
    for name, baseline in case.baselines.items():
        got = baseline(*inputs)
        assert got.shape == expected.shape, name
        if name not in case.yardsticks and name != "compile":
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3, msg=name)


def assert_gated(case):
    """The gate, and that every baseline computes the same within the type's rounding."""
    run.gate(case, CPU)
    inputs = case.inputs(CPU)
    expected = run._values(case, case.reference, tuple(t.double() for t in inputs))
    for name, baseline in case.baselines.items():
        for got, value in zip(run._values(case, baseline, inputs), expected, strict=True):
            assert (got - value).norm() <= 4 * torch.finfo(case.dtype).eps * value.norm(), name


def test_a_gpu_s_cases():
    """Their code, at sizes that a CPU computes: low precision, baselines that take an ensemble in parts."""
    assert_gated(target_net._case("small", target_net._mlp((2, 16, 32, 3), "cos", "sigmoid"), 4, 16, torch.bfloat16))
    template = torch.nn.Sequential(torch.nn.Linear(784, 8), torch.nn.ReLU(), torch.nn.Linear(8, 10))
    assert_gated(ensemble._case("mlp", template, (784,), ensemble._one_wide_product(template), 5, 30, 2))
    for dtype in (torch.float32, torch.bfloat16):
        assert_gated(hyper_lstm._plain("small", 3, 5, 4, 16, dtype))
    for family in (coord_grid, ensemble, gauge, hyper_lstm, kde, nn_entropy, target_net, tiled_conv):
        names = [case.title for case in family.cases("cuda")]
        assert len(set(names)) == len(names) >= 1
    assert "nn_entropy/N=10000" in [case.title for case in nn_entropy.cases("cuda")]
    assert not {"scikit-learn", "faiss"} & {name for case in nn_entropy.cases("cuda") for name in case.baselines}


def test_the_longest_cases_are_not_quick():
    assert [case.name for case in nn_entropy.cases() if not case.long] == ["N=32", "N=200", "N=1000"]


def test_unknown_families_are_named(capsys):
    with pytest.raises(SystemExit):
        run.main(["no_such_family"])
    assert "unknown family no_such_family; choose from target_net" in capsys.readouterr().err


def test_the_page_on_scaling_has_the_script_s_tables():
    text = (Path(__file__).resolve().parent.parent / "docs" / "scaling.md").read_text()
    begin, end = "<!-- tables: python -m hyperfast.benchmarks.ensemble_plan -->\n", "<!-- end of tables -->"
    assert text.partition(begin)[2].partition(end)[0] == ensemble_plan.report()
    one, many = (ensemble_plan.seconds(ensemble_plan.GPU, ensemble_plan.Job(), n) for n in (1, 64))
    assert many["evaluate"] == pytest.approx(one["evaluate"] / 64)
    assert one["reduce"] == 0
    net = hf.nn.TargetNet(targets.deutsch_mnist())
    assert ensemble_plan.Job().flops_per_evaluation == pytest.approx(net.plan.flops_per_row((1, 28, 28)), rel=1e-2)


def test_a_profile_counts_an_op_s_work(tmp_path):
    a, b = torch.randn(64, 128), torch.randn(128, 32)
    whole, rows = profile.profile(lambda: (a @ b).relu(), CPU, 3, tmp_path / "trace.json")
    found = {row["name"]: row for row in rows}
    assert set(found) == {"aten::mm", "aten::relu"}
    assert found["aten::mm"]["flops"] == 2 * 64 * 128 * 32
    assert found["aten::mm"]["bytes"] == 4 * (64 * 128 + 128 * 32 + 64 * 32)
    assert all(0 < row["seconds"] < whole and row["calls"] == 1 for row in rows)
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    text = profile.table(rows, whole, {"product": 100.0, "copy": 10.0})
    assert "aten::mm" in text
    assert "between ops" in text


def test_profile_of_a_family(capsys):
    assert cli.main(["profile", "gauge", "--case", "32", "--calls", "2", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "hyperfast::gauge_cpp" in out
    assert "hyperfast::gauge_backward_cpp" in out
    with pytest.raises(SystemExit):
        cli.main(["profile", "gauge", "--case", "no such case", "--device", "cpu"])
    assert "no case of gauge" in capsys.readouterr().err
