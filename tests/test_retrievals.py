"""Several retrievals from one embedding."""
from types import SimpleNamespace

import numpy as np
import torch

from data.records import Retrieval
from processor import evaluate
from processor.metrics import rank_metrics
from utils.modality import Modality


def test_several_retrievals_from_one_embedding(monkeypatch):
    """Each modality is embedded once; every trial's numbers are those of its query and gallery alone."""
    features = {m: torch.from_numpy(np.random.default_rng(1 + len(m.value)).standard_normal((8, 4))) for m in Modality}
    embedded, persons = [], np.array([0, 0, 1, 1, 2, 2, 3, 3])

    def embed(model, bank, modality, indices, **_):
        embedded.append((modality, indices.tolist()))
        return {"feature": features[modality][indices]}

    monkeypatch.setattr(evaluate, "embed", embed)
    data = SimpleNamespace(test={m: SimpleNamespace(persons=persons, cameras=np.zeros(8, int)) for m in Modality})
    there = Retrieval("there", "v2t", "regdb", Modality.RGB, np.arange(1, 8), (np.arange(8), np.array([7, 0, 5, 3])),
                      (0, 1))
    back = Retrieval("back", "t2v", "regdb", Modality.IR, np.arange(4), (np.arange(6),), (0,))
    both = evaluate.evaluate(None, data, dict.fromkeys(Modality), [there, back], 64, "fp32")
    assert embedded == [(m, list(range(8))) for m in Modality]
    for retrieval, result in zip((there, back), both):
        m = retrieval.query_modality
        assert len(result.per_trial) == len(retrieval.trials)
        for trial, found in zip(retrieval.galleries, result.per_trial):
            distance = 1 - features[m][retrieval.query] @ features[m.other][trial].T
            expected = rank_metrics(distance, persons[retrieval.query], persons[trial], protocol="regdb")
            assert (found.mAP, found.scored) == (expected.mAP, expected.scored)
