"""`make gpu` on a CPU at small size: no number here says anything."""
import json

import numpy as np
import pytest
import torch

from benchmarks import gpu, parts
from utils.errors import UserError


def run(monkeypatch, tmp_path, chosen):
    """Run parts: the exit code, the sections, the tables."""
    monkeypatch.setattr(gpu, "PARTS", chosen)
    try:
        code = gpu.main(["--small", "--device", "cpu", "--folder", str(tmp_path)])
    except SystemExit as stopped:
        code = stopped.code
    (path,) = tmp_path.glob("*.json")
    return code, json.loads(path.read_text())["parts"], path.with_suffix(".md").read_text()


def test_the_measurement_runs_on_a_cpu(monkeypatch, tmp_path):
    """All parts but torch.compile, in one precision; bf16 takes long on a CPU without it."""
    monkeypatch.setitem(parts.PRECISIONS, "cpu", ("released",))
    chosen = {name: part for name, part in gpu.PARTS.items() if name != "compiled"}
    code, sections, text = run(monkeypatch, tmp_path, chosen)
    assert code is None and set(sections) == set(chosen)
    assert all(np.isfinite(row["seconds"]) and row["seconds"] > 0 for rows in sections.values() for row in rows)
    whole, *pieces = (row["seconds"] for row in sections["epoch"])
    assert len(pieces) == 4 and sum(pieces) == pytest.approx(whole)
    assert "240 epochs: " in text and "2 x 8, released" in text


def test_a_part_that_fails_or_has_no_time_left(monkeypatch, tmp_path):
    def broken(bench):
        raise RuntimeError("out of luck")

    code, sections, text = run(monkeypatch, tmp_path, {
        "broken": (broken, 0), "slow": (broken, 600), "fine": (lambda bench: [parts.Row("fine row", 2.0)], 0)})
    assert code == 1 and list(sections) == ["fine"] and "| fine row | 2 s |" in text
    assert [line.split(": ")[:2] for line in text.splitlines()[-2:]] == [["Left out", "slow"], ["Failed", "broken"]]
    assert "out of luck" in text


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU.*--small --device cpu"):
        gpu.main([])
