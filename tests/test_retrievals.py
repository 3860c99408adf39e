"""Several retrievals from one embedding."""
from types import SimpleNamespace

import numpy as np
import pytest

from data.records import Retrieval
from processor import evaluate
from utils.modality import Modality


def test_several_retrievals_from_one_embedding(monkeypatch):
    rng = np.random.default_rng(1)
    features = {m: rng.standard_normal((8, 4)).astype(np.float32) for m in Modality}
    embedded = []

    def embed(model, bank, modality, indices, batch_size, precision, processes):
        import torch
        embedded.append((modality, tuple(indices)))
        return {"feature": torch.from_numpy(features[modality][indices])}

    monkeypatch.setattr(evaluate, "embed", embed)
    persons = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    sets = {m: SimpleNamespace(persons=persons, cameras=np.zeros(8, int)) for m in Modality}
    data = SimpleNamespace(test=sets, root="nowhere")
    there = Retrieval("there", "v2t", "regdb", Modality.RGB, np.arange(1, 8), (np.arange(8), np.array([7, 0, 5, 3])),
                      (0, 1))
    back = Retrieval("back", "t2v", "regdb", Modality.IR, np.arange(4), (np.arange(6),), (0,))
    banks = dict.fromkeys(Modality)
    both = evaluate.evaluate(None, data, banks, [there, back], 64, "fp32")
    assert embedded == [(Modality.RGB, tuple(range(8))), (Modality.IR, tuple(range(8)))]
    for retrieval, together in zip((there, back), both):
        alone = evaluate.evaluate(None, data, banks, [retrieval], 64, "fp32")[0]
        assert alone.mean() == together.mean() and len(alone.per_trial) == len(retrieval.trials)
        for trial, result in zip(retrieval.galleries, together.per_trial):
            m = retrieval.query_modality
            distance = 1 - features[m][retrieval.query] @ features[m.other][trial].T
            expected = evaluate.rank_metrics(distance, persons[retrieval.query], persons[trial], protocol="regdb")
            assert result.mAP == pytest.approx(expected.mAP)
