"""Clustering, memory, losses, schedules, metrics: equal to the released code's numbers."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clustering import jaccard, labels, neighbours
from configs.defaults import load_config
from loss.cclnet import CCLNet
from loss.image_text import image_to_text, supervised_contrast
from processor.metrics import rank_metrics
from processor.optim import image_optimizer, lr_factor, set_lr, warmup_cosine_lr
from processor.setup import prompt_settings, train_settings
from tests.tiny import epoch_of
from utils.modality import Modality

RELEASED = load_config()


@pytest.mark.parametrize("search", ["faiss", "torch", pytest.param("gpu", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", ["sysu", "regdb", "noqe"])
def test_clustering(golden, name, search, monkeypatch):
    g = golden.load(f"clustering_{name}")
    k1, k2, eps, min_samples = int(g["k1"]), int(g["k2"]), float(g["eps"]), int(g["min_samples"])
    if search == "torch":
        monkeypatch.setattr(neighbours, "faiss", None)
    elif neighbours.faiss is None:
        pytest.fail("FAISS is in requirements.txt but not installed")
    features = torch.from_numpy(g["features"]).to("cuda" if search == "gpu" else "cpu")
    sparse = jaccard.distances_of(*neighbours.neighbours_of(features, k1), k1, k2, eps=1.0).tocoo()
    dense = np.ones(sparse.shape, np.float32)       # rows that share nothing are at distance 1
    dense[sparse.row, sparse.col] = sparse.data
    np.testing.assert_allclose(dense, g["jaccard"], atol=1e-5)
    near = jaccard.distances_of(*neighbours.neighbours_of(features, k1), k1, k2, eps)
    assert near.nnz == (g["jaccard"] <= eps).sum() and near.diagonal().max() < 1e-5
    found = labels.cluster(features, k1, k2, eps, min_samples)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, g["labels"])


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", ["plain", "swap"])
def test_cluster_memory(golden, name, device):
    """The released code swaps in every epoch; before the swap epoch it keeps all of a prototype, where we do not."""
    g = golden.load(f"cluster_memory_{name}")
    start = {m: torch.from_numpy(g[f"memory_{m.value}"]).to(device) for m in Modality}
    scale = float(g["change_scale"])
    method = CCLNet(temperature=float(g["temp"]), momentum=float(g["momentum"]), cross_epoch=1 if scale < 1 else 2,
                    swap_scale=scale, swap_order="released")
    method.start(epoch_of(start), 1)
    for step in range(sum(1 for k in g.files if k.startswith("loss_rgb"))):
        batch = SimpleNamespace(labels={m: g[f"y_{m.value}{step}"] for m in Modality})
        x = {m: torch.from_numpy(g[f"x_{m.value}{step}"]).to(device).requires_grad_() for m in Modality}
        losses = method.losses(x, batch)
        sum(losses.values()).backward()
        method.update(x, batch)
        for m in Modality:
            assert float(losses[m.value].detach()) == pytest.approx(float(g[f"loss_{m.value}{step}"]), rel=1e-4)
            np.testing.assert_allclose(x[m].grad.cpu(), g[f"grad_{m.value}{step}"], atol=1e-5)
            np.testing.assert_allclose(method.prototypes()[m.value].cpu(), g[f"memory_{m.value}_after{step}"],
                                       atol=1e-5)


def test_supervised_contrast(golden):
    g = golden.load("supcon")
    image, text = (torch.from_numpy(g[k]).requires_grad_() for k in ("image", "text"))
    labels = torch.from_numpy(g["labels"])
    i2t = supervised_contrast(image, labels, text, labels)
    t2i = supervised_contrast(text, labels, image, labels)
    (i2t + t2i).backward()
    assert float(i2t.detach()) == pytest.approx(float(g["i2t"]), rel=1e-5)
    assert float(t2i.detach()) == pytest.approx(float(g["t2i"]), rel=1e-5)
    np.testing.assert_allclose(image.grad, g["grad_image"], atol=1e-5)
    np.testing.assert_allclose(text.grad, g["grad_text"], atol=1e-5)


def test_image_to_text(golden):
    g = golden.load("label_smooth_ce")
    logits, classes = torch.from_numpy(g["logits"]).requires_grad_(), g["logits"].shape[1]
    loss = image_to_text(logits, torch.eye(classes), torch.from_numpy(g["targets"]), RELEASED.FINETUNE.LABEL_SMOOTHING)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(g["loss"]), rel=1e-5)
    np.testing.assert_allclose(logits.grad, g["grad"], atol=1e-6)


def test_image_schedule(golden):
    g = golden.load("lr_schedules")
    settings = train_settings(RELEASED, "prepare")
    assert settings.epochs == len(g["visual_lr"])
    parameters = {name: torch.nn.Parameter(torch.zeros(1)) for name in ("conv.weight", "conv.bias")}
    optimizer = image_optimizer(parameters.items(), settings.optim)
    for epoch, (lr, bias_lr) in enumerate(zip(g["visual_lr"], g["visual_bias_lr"]), 1):
        set_lr(optimizer, lr_factor(settings, epoch))
        rates = {name: group["lr"] for group in optimizer.param_groups for name, p in parameters.items()
                 if any(p is q for q in group["params"])}
        assert rates == pytest.approx({"conv.weight": lr, "conv.bias": bias_lr}, rel=1e-6), epoch


def test_prompt_schedule(golden):
    g, s = golden.load("lr_schedules"), prompt_settings(RELEASED)
    assert s.epochs == len(g["prompt_lr"])
    for epoch, lr in enumerate(g["prompt_lr"], 1):
        ours = warmup_cosine_lr(epoch, s.epochs, s.lr, s.lr_min, s.warmup_lr, s.warmup_epochs)
        assert ours == pytest.approx(lr, rel=1e-6), epoch


@pytest.mark.parametrize("protocol", ["sysu", "regdb"])
def test_metrics(golden, protocol):
    g = golden.load("metrics")
    result = rank_metrics(g["distance"], g["query_ids"], g["gallery_ids"], g["query_cams"], g["gallery_cams"], protocol)
    np.testing.assert_allclose(result.cmc, g[f"{protocol}_cmc"], atol=1e-6)
    assert result.mAP == pytest.approx(float(g[f"{protocol}_map"]), abs=1e-6)
    assert result.mINP == pytest.approx(float(g[f"{protocol}_minp"]), abs=1e-6)
