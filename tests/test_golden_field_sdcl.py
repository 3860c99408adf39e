"""SDCL and its label unification: equal to the numbers of the released code, through the classes that training uses."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from configs.defaults import load_config
from loss.cluster_memory import ClusterMemory
from loss.method import EpochStart
from loss.methods import METHODS
from loss.unify import most_frequent, votes
from processor.setup import train_settings
from processor.train import train
from tests.test_golden_methods import close, same_loss
from tests.test_golden_schedule import Toy
from tests.test_training_notices import ScriptedTester
from tests.tiny import LABELS, PEOPLE, Silent, TinyRun
from utils.modality import Modality

RGB, IR = Modality


def both_depths(g, side):
    return torch.stack([torch.from_numpy(g[f"{depth}_{side}"]) for depth in ("deep", "shallow")], dim=1)


@pytest.mark.parametrize("name", ["unify_sysu", "unify_regdb"])
def test_unification(golden_field, name):
    """Of equally frequent clusters the first one wins here; `torch.topk` took others."""
    g = golden_field.load(name)
    rows = {m: both_depths(g, m.value) for m in Modality}
    top, labels = int(g["top"]), {m: g[f"labels_{m.value}"] for m in Modality}
    deep, shallow = votes(*rows.values(), labels[IR], top)
    np.testing.assert_array_equal(deep[np.arange(len(deep)), g["chosen_rank"]], g["vote"])
    np.testing.assert_array_equal(most_frequent(deep, shallow), g["vote_first"])
    for method, setting in (("unify", "cross_epoch"), ("sdcl", "unify_epoch")):
        method = METHODS[method](top_votes=top, momentum=float(g["momentum"]), **{setting: 3})
        assert method.start(EpochStart({"depths": rows}, labels, None), 2) is labels and method.links() is None
        found = method.start(EpochStart({"depths": rows}, labels, None), 3)
        unified = g["first_labels_rgb_unified"]
        np.testing.assert_array_equal(found[RGB], np.where(labels[RGB] < 0, -1, unified))
        np.testing.assert_array_equal(np.flatnonzero(found[RGB] >= 0), g["first_kept_rgb"])
        np.testing.assert_array_equal(np.flatnonzero(found[IR] >= 0), g["kept_ir"])
        both = sorted(set(unified[g["first_kept_rgb"]]))
        assert all(np.flatnonzero(of >= 0).tolist() == of[both].tolist() == both for of in method.links())
        close(method.prototypes()["shared"], g["first_memory_deep"], 2e-5)
        close(method.prototypes()["shared_shallow"], g["first_memory_shallow"], 2e-5)


def begun(g, kind, gradients):
    """SDCL at the start of an epoch of the file, which counts from 0; memories are put in as they stand there."""
    names = {"cross_epoch": "cross_from", "intra_epoch": "intra_from", "unify_epoch": "unify_epoch"}
    epochs, epoch = {setting: int(g[name]) + 1 for setting, name in names.items()}, int(g[f"{kind}_epoch"]) + 1
    if kind == "intra":
        epochs["intra_epoch"] = epoch       # the first that counts
    method = METHODS["sdcl"](temperature=float(g["temp"]), momentum=float(g["momentum"]), gradients=gradients, **epochs)
    rows = {m: torch.stack([torch.from_numpy(g[f"images_{m.value}_{depth}"]) for depth in ("deep", "shallow")], dim=1)
            for m in Modality}
    labels = {m: np.arange(len(rows[m])) % len(g[f"memory_{m.value}_deep"]) for m in Modality}
    method.start(EpochStart({"depths": rows}, labels, None), epoch)
    for name in method.memories:
        side, _, shallow = name.partition("_")
        stored = ("shared" if side == "shared" else f"memory_{side}") + ("_shallow" if shallow else "_deep")
        method.memories[name] = ClusterMemory(torch.from_numpy(g[stored]), float(g["temp"]), float(g["momentum"]))
    return method


@pytest.mark.parametrize("gradients", ["released", "exact"])
@pytest.mark.parametrize("kind", ["intra", "cross_even", "cross_odd", "unified_even", "unified_odd"])
def test_step(golden_field, kind, gradients):
    g = golden_field.load("sdcl_step")
    method = begun(g, kind, gradients)
    parts = {(m, depth): torch.from_numpy(g[f"{depth}_{m.value}"]).requires_grad_()
             for m in Modality for depth in ("deep", "shallow")}
    labels = {m: g[f"labels_{m.value}"] for m in Modality}
    if method.unifies(method.epoch):
        labels[RGB] = g["labels_rgb_unified"]
    twice = {RGB: 2, IR: 1}
    batch = SimpleNamespace(labels={m: np.tile(labels[m], twice[m]) for m in Modality},
                            positions={m: np.tile(g[f"index_{m.value}"], twice[m]) for m in Modality})
    features = {m: torch.cat([parts[m, "deep"], parts[m, "shallow"]], dim=1) for m in Modality}
    losses = method.losses(features, batch)
    total = sum(losses.values())
    same_loss(total, g[f"{kind}_loss"])
    within, across = (0.1, 0.1) if kind.startswith("unified") else (1, 0.5)
    for key in g.files:
        what, _, name = key.removeprefix(f"{kind}_loss_").partition("_")
        if key.startswith(f"{kind}_loss_memory"):
            same_loss(losses.pop(name), g[key])
        elif key.startswith(f"{kind}_loss_neighbour"):
            weight = within if name.startswith(("rgb_rgb", "ir_ir")) else across
            same_loss(losses.pop(f"near_{name}", 0), weight * g[key])
    assert not losses
    total.backward()
    prefix = {"released": "gradient", "exact": "exact_gradient"}[gradients]
    for (m, depth), rows in parts.items():
        close(rows.grad, g[f"{kind}_{prefix}_{depth}_{m.value}"], 1e-4)
    for m, side, _ in method.pairs():
        name = "cross" if m is not side else f"{m.value}_{m.value}"
        near = method.neighbours(m, side, batch.positions[m]).sum(dim=1)
        np.testing.assert_array_equal(near, g[f"{kind}_neighbours_{name}"])
    method.update({m: rows.detach() for m, rows in features.items()}, batch)
    for name, rows in method.prototypes().items():
        close(rows, g[f"{kind}_after_memory_{name}"], 2e-5)
    for name, memory in method.images.items():
        close(memory.prototypes, g[f"{kind}_after_images_{name if 'shallow' in name else name + '_deep'}"], 2e-5)


@pytest.mark.parametrize("name", ["sysu", "regdb"])
def test_schedule_of_the_configuration(golden_field, name, banks, tmp_path, stubs, monkeypatch):
    """SGD's rates and momentum go on where the best epoch's weights are taken up."""
    g = golden_field.load("sdcl_schedule")
    config = load_config(f"configs/{name}_sdcl.yml", [
        "METHOD.UNIFY_FROM", "released", "SAMPLER.ITERATIONS", "1", "SAMPLER.CLUSTERS", "1", "SAMPLER.INSTANCES", "1"])
    settings, rows = train_settings(config, "prepare"), {m: torch.eye(PEOPLE)[LABELS[m]][:, None] for m in Modality}
    monkeypatch.setattr("processor.train.embed_all", lambda *_: {
        "feature": {m: x.flatten(1) for m, x in rows.items()}, "depths": rows})
    toy, rates, found = Toy(torch.from_numpy(g["toy_start"].copy())), [], []

    def step(model, optimizer, *_):
        toy.weight.grad = torch.from_numpy(g[f"{name}_toy_gradient"][len(found)])
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
        found.append(toy.weight.detach().clone().numpy())
        return {"loss_rgb": torch.zeros(())}

    stubs.step = step
    run, best = TinyRun(tmp_path, processes=Silent()), int(g[f"{name}_best_epoch"]) + 1
    run.save_state = lambda *_: None
    tester = ScriptedTester(banks, {epoch: float(epoch == best) for epoch in range(1, settings.epochs + 1)})
    train("prepare", toy, banks, settings, run, tester)
    np.testing.assert_allclose(rates, g[f"{name}_lr"], rtol=1e-9)
    np.testing.assert_allclose(found, g[f"{name}_toy"], atol=2e-6)
    assert settings.method(**settings.of_method).best_epoch == int(g[f"{name}_unify_epoch"]) + 1
