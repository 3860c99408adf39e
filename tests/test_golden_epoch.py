"""Two epochs of each stage, step by step, through the loops that ship: equal to the released code's."""
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import Golden

import processor.prompt
import processor.train
from configs.defaults import load_config
from data.batches import Batches, PromptBatches
from data.images import ImageBank
from model.cclnet import CCLNet
from model.clip import TextTower, load_clip
from model.released import our_name
from model.towers.registry import load_tower
from processor.guidance import TextGuidance
from processor.prompt import PromptState, learn_prompts, text_features
from processor.run.folder import Run
from processor.setup import prompt_settings, train_settings
from utils.modality import Modality

FOLDER = Path(os.environ.get("CCLNET_GOLDEN_EPOCH", Path(__file__).parent / "golden_epoch"))
EPOCHS = (1, 2)
# The files call some keys by their names of that time.
KEYS = {"MEMORY.SWAP_EPOCH": "METHOD.CROSS_EPOCH", "MEMORY.METHOD": "METHOD.NAME"}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def golden():
    return Golden(FOLDER)


@pytest.fixture(scope="module")
def recipe(golden):
    return golden.module("recipe_epoch")


@pytest.fixture(scope="module")
def config(golden):
    words = {KEYS.get(key, key.replace("MEMORY.", "METHOD.")): value for key, value in golden.meta["config"].items()}
    return load_config(None, [str(word) for pair in words.items() for word in pair])


@pytest.fixture(scope="module")
def images(golden, recipe):
    return {m: ImageBank(recipe.images(golden.seed, m.value)[0]) for m in Modality}


@pytest.fixture(scope="module")
def clip_file(golden, recipe, tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.save(recipe.clip(golden.seed), path)
    return str(path)


@pytest.fixture
def run(tmp_path):
    return Run("golden", tmp_path, logging.getLogger("golden"), {"manifest": {}, "config": {}})


@pytest.fixture
def tester(golden, recipe):
    """Tests nothing; the recorded runs' evaluations were answered too."""
    persons = {m: SimpleNamespace(persons=recipe.images(golden.seed, m.value)[1]) for m in Modality}
    return SimpleNamespace(data=SimpleNamespace(train=persons), device=torch.device("cpu"),
                           is_due=lambda epoch, epochs: False)


class Recorder:
    """Stands around the loop's step and notes what the recorded run noted. Args: g: its file; model: `CCLNet`."""

    def __init__(self, g, model):
        self.step, self.model, self.epochs = processor.train.train_step, model, []
        self.weights = {str(name): dict(model.named_parameters())[our_name(str(name))] for name in g["weights"]}
        self.start = {name: weight.detach().clone() for name, weight in self.weights.items()}
        buffers = dict(model.named_buffers())
        self.norms = [{kind: buffers[our_name(f"{name}.{kind}")] for kind in ("running_mean", "running_var")}
                      for name in g["batch_norms"]]

    def __call__(self, model, optimizer, method, *rest):
        if not self.epochs or self.epochs[-1]["method"] != (method, method.settings, id(method.memories)):
            self.epochs.append({"method": (method, method.settings, id(method.memories)), "steps": [],
                                "start": {name: rows.clone() for name, rows in method.prototypes().items()}})
        numbers = self.step(model, optimizer, method, *rest)
        self.epochs[-1]["steps"].append({
            "losses": [float(loss) for loss in numbers.values()], "links": method.links().rgb_to_ir,
            "rates": [group["lr"] for group in optimizer.param_groups],
            "weight_norms": [float(w.detach().norm()) for w in self.weights.values()],
            "weight_moves": [float((w.detach() - self.start[name]).norm()) for name, w in self.weights.items()],
            "running_means": [float(norm["running_mean"].norm()) for norm in self.norms],
            "running_vars": [float(norm["running_var"].sum()) for norm in self.norms]})
        return numbers

    def column(self, epoch, name):
        return np.array([step[name] for step in self.epochs[epoch - 1]["steps"]])


def recorded_batches(g):
    """Make `Batches` of the recorded positions."""
    class Recorded(Batches):
        def __init__(self, images, labels, settings, epoch, *rest):
            super().__init__(images, labels, settings, epoch, *rest)
            self.positions = {m: g[f"positions_{m.value}_{epoch}"] for m in Modality}
    return Recorded


@pytest.mark.parametrize("stage, name", [("prepare", "prepare"), ("finetune", "clip")])
def test_training_epochs(golden, config, images, clip_file, run, tester, monkeypatch, stage, name):
    g = golden.load(f"epoch_{name}")
    model, guidance = CCLNet(load_tower(clip_file, height=config.INPUT.HEIGHT, width=config.INPUT.WIDTH)), None
    if stage == "finetune":
        p, text = golden.load("epoch_prompt"), TextTower(load_clip(clip_file))
        labels = {m: p[f"labels_{m.value}"].astype(np.int64) for m in Modality}
        prompts = PromptState(text, labels, prompt_settings(config)).prompts
        with torch.no_grad():
            for m in Modality:
                prompts[m].context.copy_(torch.from_numpy(p[f"end_{m.value}"]))
        guidance = TextGuidance(text_features(text, prompts), labels, config.FINETUNE.LABEL_SMOOTHING)
    recorder, ends = Recorder(g, model), []
    end_epoch = processor.train.end_epoch

    def note_end(stage, epoch, state, method, labels, *rest):
        end_epoch(stage, epoch, state, method, labels, *rest)
        ends.append((labels, method.prototypes()))

    monkeypatch.setattr(processor.train, "train_step", recorder)
    monkeypatch.setattr(processor.train, "Batches", recorded_batches(g))
    monkeypatch.setattr(processor.train, "end_epoch", note_end)
    processor.train.train(stage, model, images, train_settings(config, stage), run, tester, guidance)
    for epoch, (labels, prototypes) in zip(EPOCHS, ends):
        of_epoch = recorder.epochs[epoch - 1]
        for m in Modality:
            np.testing.assert_array_equal(labels[m], g[f"labels_{m.value}_{epoch}"])
            np.testing.assert_allclose(of_epoch["start"][m.value], g[f"start_{m.value}_{epoch}"], atol=1e-4)
            np.testing.assert_allclose(prototypes[m.value], g[f"end_{m.value}_{epoch}"], atol=2e-4)
        steps = len(g[f"losses_{epoch}"])
        np.testing.assert_allclose(recorder.column(epoch, "rates"), [g[f"rates_{epoch}"]] * steps, rtol=1e-9)
        for what, rtol, atol in (("losses", 3e-4, 1e-5), ("weight_norms", 2e-5, 0), ("weight_moves", 5e-3, 0),
                                 ("running_means", 1e-5, 0), ("running_vars", 1e-5, 0)):
            np.testing.assert_allclose(recorder.column(epoch, what), g[f"{what}_{epoch}"], rtol=rtol, atol=atol,
                                       err_msg=f"{what} of epoch {epoch}")
        if epoch >= config.METHOD.CROSS_EPOCH:
            np.testing.assert_array_equal(recorder.column(epoch, "links"), g[f"links_{epoch}"])


def test_prompt_epochs(golden, recipe, config, images, clip_file, run, monkeypatch):
    g, losses = golden.load("epoch_prompt"), []
    labels = {m: g[f"labels_{m.value}"].astype(np.int64) for m in Modality}
    model = CCLNet(load_tower(clip_file, height=config.INPUT.HEIGHT, width=config.INPUT.WIDTH))
    text, settings = TextTower(load_clip(clip_file)), prompt_settings(config)

    class Recorded(PromptBatches):
        def __init__(self, images, labels, settings, epoch):
            super().__init__(images, labels, settings, epoch)
            self.steps = np.flatnonzero(g["epochs"] == epoch)

        def __len__(self):
            return len(self.steps)

        def __getitem__(self, step):
            rows = {m: g[f"positions_{m.value}"][self.steps[step]] for m in Modality}
            return {m: positions[positions >= 0] for m, positions in rows.items()}

    def note(text, prompts, optimizer, *rest):
        losses.append((float(step(text, prompts, optimizer, *rest)), optimizer.param_groups[0]["lr"]))
        return torch.tensor(losses[-1][0])

    step, start = processor.prompt.prompt_step, PromptState(text, labels, settings)
    with torch.no_grad():
        for m in Modality:
            start.prompts[m].context.copy_(torch.from_numpy(recipe.contexts(golden.seed, m.value, len(
                start.prompts[m].context)).numpy()))
            np.testing.assert_array_equal(start.prompts[m].context, g[f"start_{m.value}"])
    run.states["prompt"] = start.state_dict()
    monkeypatch.setattr(processor.prompt, "prompt_step", note)
    monkeypatch.setattr(processor.prompt, "PromptBatches", Recorded)
    prompts = learn_prompts(model, text, images, labels, settings, run)
    found, rates = np.array(losses).T
    np.testing.assert_allclose(found, g["losses"].sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(rates, g["rates"], rtol=1e-9)
    for m in Modality:
        np.testing.assert_allclose(prompts[m].context.detach(), g[f"end_{m.value}"], atol=1e-5)
