"""Several retrievals from one embedding: their numbers, and their ranked lists and features as files."""
import csv

import numpy as np
import pytest
import torch

from data.records import ImageSet, Retrieval
from data.sysu import SysuDataSet
from processor import evaluate
from processor.metrics import rank_metrics
from processor.ranking import save_rankings
from utils.modality import Modality

RGB, IR = Modality
PERSONS = {RGB: np.array([0, 0, 1, 1, 2, 2, 3, 3]), IR: np.array([0, 0, 1, 1, 2, 2, 3, 9])}
CAMERAS = {RGB: np.array([1, 2, 4, 5] * 2), IR: np.array([3, 6] * 4)}
THERE = Retrieval("there", "all", "sysu", IR, np.arange(1, 8), (np.arange(8), np.array([7, 0, 5, 3])), (0, 1))
BACK = Retrieval("back", "t2v", "regdb", RGB, np.arange(4), (np.arange(6),), (0,))


def test_several_retrievals_from_one_embedding(tmp_path, monkeypatch):
    """Each modality is embedded once; numbers and lists of every trial are those of its query and gallery alone."""
    features, embedded = dict(zip(Modality, torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0)))), []

    def embed(model, bank, modality, indices, **_):
        embedded.append((modality, indices.tolist()))
        return {"feature": features[modality][indices]}

    monkeypatch.setattr(evaluate, "embed", embed)
    data = SysuDataSet("by hand", "", {}, {m: ImageSet.from_rows(m, [
        (f"{m.value}/{i}.png", *of) for i, of in enumerate(zip(PERSONS[m], CAMERAS[m]))]) for m in Modality})
    both = evaluate.evaluate(None, data, dict.fromkeys(Modality), [THERE, BACK], 64, "fp32")
    assert embedded == [(m, list(range(8))) for m in Modality]
    *lists, stored = save_rankings(tmp_path, data, [THERE, BACK], both)
    for retrieval, result, path in zip((THERE, BACK), both, lists, strict=True):
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        m, q, mode = retrieval.query_modality, retrieval.query, retrieval.mode
        assert path.name == f"ranking_{mode}.csv" and len(result.per_trial) == len(retrieval.trials)
        for trial, g, found in zip(retrieval.trials, retrieval.galleries, result.per_trial):
            distance = (1 - features[m][q] @ features[m.other][g].T).numpy()
            expected = rank_metrics(distance, PERSONS[m][q], PERSONS[m.other][g], CAMERAS[m][q], CAMERAS[m.other][g],
                                    retrieval.rule)
            assert (found.mAP, found.scored) == (pytest.approx(expected.mAP), expected.scored)
            hidden = (mode == "all") & (CAMERAS[m][q][:, None] == 3) & (CAMERAS[m.other][g] == 2)     # one place
            listed = [(i, near) for i in range(len(q)) for near in distance[i].argsort() if not hidden[i, near]]
            of_trial = [row for row in rows if row["trial"] == str(trial)]
            assert [(row["query"], row["gallery"]) for row in of_trial] == [
                (f"{m.value}/{q[i]}.png", f"{m.other.value}/{g[near]}.png") for i, near in listed]
            assert [float(row["distance"]) for row in of_trial] == pytest.approx(
                [distance[place] for place in listed], abs=1e-5)
            with np.load(stored, allow_pickle=False) as arrays:     # from which others compute the same
                sides = (arrays[f"{m.value}_features"][arrays[f"{mode}_query"]],
                         arrays[f"{m.other.value}_features"][arrays[f"{mode}_gallery_{trial}"]])
            np.testing.assert_allclose(1 - sides[0] @ sides[1].T, distance, atol=1e-6)
        assert all((row["match"] == "1") == (row["query_person"] == row["gallery_person"]) for row in rows)
        unscored = {row["query"] for row in rows if row["scored"] == "0"}     # or what would match is hidden
        assert unscored == ({"ir/4.png", "ir/7.png"} if mode == "all" else set())
