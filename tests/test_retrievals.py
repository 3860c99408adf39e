"""Several retrievals from one embedding."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.records import Retrieval
from processor import evaluate
from processor.metrics import rank_metrics
from utils.modality import Modality


def test_several_retrievals_from_one_embedding(monkeypatch):
    """Each modality is embedded once; every trial's numbers are those of its query and gallery alone."""
    rng = np.random.default_rng(1)
    features = {m: rng.standard_normal((8, 4)).astype(np.float32) for m in Modality}
    embedded = []

    def embed(model, bank, modality, indices, **_):
        embedded.append((modality, tuple(indices)))
        return {"feature": torch.from_numpy(features[modality][indices])}

    monkeypatch.setattr(evaluate, "embed", embed)
    persons = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    sets = {m: SimpleNamespace(persons=persons, cameras=np.zeros(8, int)) for m in Modality}
    there = Retrieval("there", "v2t", "regdb", Modality.RGB, np.arange(1, 8), (np.arange(8), np.array([7, 0, 5, 3])),
                      (0, 1))
    back = Retrieval("back", "t2v", "regdb", Modality.IR, np.arange(4), (np.arange(6),), (0,))
    data = SimpleNamespace(test=sets, root="")
    both = evaluate.evaluate(None, data, dict.fromkeys(Modality), [there, back], 64, "fp32")
    assert embedded == [(Modality.RGB, tuple(range(8))), (Modality.IR, tuple(range(8)))]
    for retrieval, result in zip((there, back), both):
        assert len(result.per_trial) == len(retrieval.trials)
        for trial, found in zip(retrieval.galleries, result.per_trial):
            m = retrieval.query_modality
            distance = 1 - features[m][retrieval.query] @ features[m.other][trial].T
            expected = rank_metrics(distance, persons[retrieval.query], persons[trial], protocol="regdb")
            assert found.mAP == pytest.approx(expected.mAP) and found.cmc == pytest.approx(expected.cmc)
