"""`make gpu` on a CPU at small size: no number here says anything."""
import json

import numpy as np
import pytest
import torch

from benchmarks import gpu, parts
from utils.errors import UserError


def test_the_measurement_runs_on_a_cpu(monkeypatch, tmp_path):
    """All parts but torch.compile, in one precision, as bf16 takes long on a CPU; a part that fails is told."""
    def broken(bench):
        raise RuntimeError("out of luck")

    monkeypatch.setitem(parts.PRECISIONS, "cpu", ("released",))
    chosen = {name: part for name, part in gpu.PARTS.items() if name != "compiled"}
    monkeypatch.setattr(gpu, "PARTS", {**chosen, "broken": (broken, 0)})
    with pytest.raises(SystemExit, match="1"):
        gpu.main(["--small", "--device", "cpu", "--folder", str(tmp_path)])
    (path,) = tmp_path.glob("*.json")
    sections, text = json.loads(path.read_text())["parts"], path.with_suffix(".md").read_text()
    assert set(sections) == set(chosen)
    assert all(np.isfinite(row["seconds"]) and row["seconds"] > 0 for rows in sections.values() for row in rows)
    whole, *pieces = (row["seconds"] for row in sections["epoch"])
    assert len(pieces) == 4 and sum(pieces) == pytest.approx(whole)
    assert "240 epochs: " in text and "2 x 8, released" in text and "Failed: broken" in text and "out of luck" in text


def test_times_of_a_cpu_never_stand_under_the_name_of_a_gpu(monkeypatch, tmp_path):
    """`make bench` on a machine with a GPU would replace what `make gpu` measured."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    gpu.write(tmp_path, torch.device("cpu"), {}, [])
    gpu.write(tmp_path, torch.device("cuda"), {}, [])
    assert len(list(tmp_path.glob("*.md"))) == 2 and (tmp_path / "some-gpu.md").is_file()


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU.*--small --device cpu"):
        gpu.main([])
