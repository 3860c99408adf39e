"""PRECISION bf16: the image side alone runs in it; weights, memories, losses and distances stay fp32."""
import json

import pytest
import scripts
import torch
import trees

import utils.metrics

IDS = {"train": (1, 2, 3), "val": (4,), "test": (5, 6, 7)}


@pytest.fixture(scope="module")
def words(tmp_path_factory, tiny_clip_file):
    data = trees.people_tree(tmp_path_factory.mktemp("people") / "data", ids=IDS)
    return scripts.settings(DATASET__ROOT=data, MODEL__CLIP_WEIGHTS=tiny_clip_file, PRECISION="bf16",
                            PREPARE__EPOCHS=2, FINETUNE__EPOCHS=2)


def test_all_scripts_run_in_bf16(words, tmp_path, monkeypatch):
    scripts.without_report(monkeypatch)
    convolutions = set()
    real = torch.nn.Conv2d.forward

    def forward(self, x):
        y = real(self, x)
        convolutions.add(y.dtype)
        return y

    monkeypatch.setattr(torch.nn.Conv2d, "forward", forward)
    run, test = tmp_path / "run", tmp_path / "test"
    for script in ("train_prepare", "train_clip"):
        assert scripts.call(scripts.load(script), [*words, "OUTPUT_DIR", run]) == 0
    assert scripts.call(scripts.load("test"), ["--resume_path", run / "model_last.pth", "OUTPUT_DIR", test]) == 0
    assert convolutions == {torch.bfloat16}

    content = torch.load(run / "model_last.pth", weights_only=True)
    assert {v.dtype for v in content["state_dict"].values() if v.is_floating_point()} == {torch.float32}
    tested = json.loads((test / "metrics.json").read_text())
    assert tested["mAP"] > 0
    assert [tested[k] for k in ("rank1", "mAP", "mINP")] == [content["metrics"][k] for k in ("rank1", "mAP", "mINP")]


def test_distances_are_not_rounded_to_bf16(words, tmp_path, monkeypatch):
    """Eight bits would make ties of most distances."""
    scripts.without_report(monkeypatch)
    seen = []

    def rank_metrics(distance, *rest, real=utils.metrics.rank_metrics):
        seen.append(distance)
        return real(distance, *rest)

    monkeypatch.setattr("processor.evaluate.rank_metrics", rank_metrics)
    assert scripts.call(scripts.load("test"), [*words, "OUTPUT_DIR", tmp_path / "test"]) == 0
    assert (torch.from_numpy(seen[-1]) != torch.from_numpy(seen[-1]).bfloat16().float()).any()
