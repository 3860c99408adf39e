"""PRECISION: what a GPU rounds; with bf16 weights, memories, losses and distances stay fp32."""
import json
from types import SimpleNamespace

import pytest
import scripts
import torch
import trees

import loss.cluster_memory
import processor.guidance
import processor.metrics
from utils.runtime import autocast, gpu_rounding

IDS = {"train": (1, 2, 3), "val": (4,), "test": (5, 6, 7)}


def test_all_scripts_run_in_bf16(tiny_clip_file, tmp_path, monkeypatch):
    """Distances are not rounded: eight bits would make ties of most of them."""
    scripts.without_report(monkeypatch)
    words = scripts.settings(DATASET__ROOT=trees.people_tree(tmp_path / "data", ids=IDS), PRECISION="bf16",
                             MODEL__CLIP_WEIGHTS=tiny_clip_file, METHOD__CROSS_EPOCH=1)
    convolutions = set()
    real = torch.nn.Conv2d.forward

    def forward(self, x):
        y = real(self, x)
        convolutions.add(y.dtype)
        return y

    monkeypatch.setattr(torch.nn.Conv2d, "forward", forward)
    in_bf16 = {}

    def noting(name, real):
        def noted(*arguments, **named):
            in_bf16.setdefault(name, set()).add(torch.is_autocast_enabled("cpu"))
            return real(*arguments, **named)
        return noted

    for module, name in ((loss.cluster_memory, "cross_entropy"), (processor.guidance, "image_to_text")):
        monkeypatch.setattr(module, name, noting(name, getattr(module, name)))
    seen, real_metrics = [], processor.metrics.rank_metrics
    monkeypatch.setattr("processor.evaluate.rank_metrics", lambda distance, *rest: (
        seen.append(torch.from_numpy(distance)), real_metrics(distance, *rest))[1])
    run = tmp_path / "run"
    for script in ("train_prepare", "train_clip"):
        assert scripts.call(scripts.load(script), [*words, "OUTPUT_DIR", run]) == 0
    assert scripts.call(scripts.load("test"), ["--resume_path", run / "model_last.pth", "TEST.TRIALS", "2"]) == 0
    assert (seen[-1] != seen[-1].bfloat16().float()).any()
    assert convolutions == {torch.bfloat16}
    assert in_bf16 == {"cross_entropy": {False}, "image_to_text": {False}}      # losses stay fp32

    content = torch.load(run / "model_last.pth", weights_only=True)
    assert {v.dtype for v in content["state_dict"].values() if v.is_floating_point()} == {torch.float32}
    tested = json.loads(next(run.glob("tests/model_last-*/metrics.json")).read_text())
    assert tested["mAP"] > 0
    assert [tested[k] for k in ("rank1", "mAP", "mINP")] == [content["metrics"][k] for k in ("rank1", "mAP", "mINP")]


SWITCHES = {"released": ("ieee", "tf32"), "fp32": ("ieee", "ieee"), "tf32": ("tf32", "tf32"), "bf16": ("ieee", "ieee")}


@pytest.mark.parametrize("name, expected", SWITCHES.items())
def test_switches_of_a_gpus_matrix_products_and_convolutions(name, expected, recwarn):
    """The released numbers were made with TF32 in convolutions and none in matrix products."""
    new = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    if not hasattr(new[0], "fp32_precision"):
        pytest.skip("this PyTorch has the older switches alone")
    before = [owner.fp32_precision for owner in new]
    with gpu_rounding(name), autocast(name, torch.device("cpu")):
        assert tuple(owner.fp32_precision for owner in new) == expected
        assert torch.is_autocast_enabled("cpu") == (name == "bf16")
    assert [owner.fp32_precision for owner in new] == before
    with pytest.raises(KeyError), gpu_rounding(name):
        raise KeyError
    assert [owner.fp32_precision for owner in new] == before and not recwarn.list


@pytest.mark.parametrize("name, expected", SWITCHES.items())
def test_older_switches_do_the_same(name, expected, monkeypatch):
    old = SimpleNamespace(cuda=SimpleNamespace(matmul=SimpleNamespace(allow_tf32=True)),
                          cudnn=SimpleNamespace(allow_tf32=False))
    monkeypatch.setattr(torch, "backends", old)
    with gpu_rounding(name):
        assert (old.cuda.matmul.allow_tf32, old.cudnn.allow_tf32) == tuple(value == "tf32" for value in expected)
    assert old.cuda.matmul.allow_tf32 and not old.cudnn.allow_tf32
