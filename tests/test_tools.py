"""Small parts of the tools: the demo's table, the tests that mutants run."""
from pathlib import Path

from tools import demo
from tools.dev import mutants

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
