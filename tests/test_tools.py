"""Small tables and parts of the tools."""
import contextlib
import io
import runpy
import sys
from pathlib import Path

import pytest

from tools import demo
from tools.dev import mutants, trace

ROOT = Path(__file__).resolve().parents[1]


def test_the_demo_tabulates_seeds():
    def results(value):
        return [{"rank1": stage * value, "rank10": 1.0, "mAP": 0.5, "mINP": 0.25} for stage in (1, 2, 3)]

    head, baseline, _, clip = demo.table([results(0.1)]).splitlines()
    assert head.split() == ["Rank-1", "Rank-10", "mAP", "mINP"]
    assert baseline.split() == ["baseline", "CLIP", "10.0", "100.0", "50.0", "25.0"]
    assert clip.split()[2:] == ["30.0", "100.0", "50.0", "25.0"]
    lines = demo.table([results(0.1), results(0.2)]).splitlines()
    assert lines[1].split()[2:5] == ["15.0", "±", "7.1"] and lines[2].split()[2:5] == ["30.0", "±", "14.1"]


def test_the_tests_of_mutants_are_there():
    assert all((ROOT / path).is_file() for names in mutants.TESTS for path in mutants.tests_of(names))


def test_calls_are_counted():
    calls = [("a.py", "f"), ("a.py", "g"), ("b.py", "f"), ("a.py", "f")]
    assert trace.count(calls) == (3, 2, 2)


@pytest.mark.parametrize("words, said", [
    (["-m", "report", "no/such"], "no/such is no folder; expected the OUTPUT_DIR of"),
    (["experiments", "table", "no/such"], "no/such is no folder; expected that of a run or of a grid"),
    (["experiments", "compare", "no/such"], "no/such is no folder; expected that of a run or of a grid"),
    (["experiments", "run", "--config_file", "no/such"], "no/such is no file; expected a .yml file"),
    (["bounds", "links", "train_prepare", "--config_file", "no/such"], "no/such is no file; expected a .yml file"),
    (["evaluate", "no/such"], "no/such is no file; expected a .npz file"),
    (["process", "--dataset", "sysu", "--root", "no/such"], "no/such is no folder; expected that of the data set sysu"),
    (["export_released", "no/such", "x"], "no/such is no file; expected a checkpoint"),
    *(([name, "--help"], None) for name in ("experiments", "bounds", "evaluate", "process", "export_released"))])
def test_tools_answer_before_they_load_anything(words, said, monkeypatch):
    """PyTorch, which takes seconds, is not at hand here."""
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.split(".")[0] in ("configs", "report", "tools", "data", "model")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "argv", words[words[0] == "-m":])
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
        if words[0] == "-m":
            runpy.run_module("report", run_name="__main__")
        else:
            runpy.run_path(str(ROOT / f"tools/{words[0]}.py"), run_name="__main__")
    assert (end.value.code, err.getvalue().startswith(f"error: {said}")) == ((2, True) if said else (0, False))
    assert said or "python tools/" in out.getvalue()
