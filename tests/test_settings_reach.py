"""Every setting reaches its use: one run of both training scripts with an odd value for each, watched from inside."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
import scripts
import torch
import torch.nn.functional as F
import trees
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.optimizer import register_optimizer_step_pre_hook

import clustering.clustering
import data.augment
import data.pseudo_labels
import loss.cclnet
import loss.cluster_memory
import processor.evaluate
import processor.features
import processor.guidance
import processor.prompt
import processor.run.folder
import processor.setup
import processor.train
from configs.defaults import as_dict, load_config
from data.augment import Augmentation
from data.pseudo_labels import FILE_NAMES
from model.cclnet import CCLNet
from model.clip import TextTower, load_clip
from model.towers.registry import load_tower
from processor.prompt import text_features
from processor.run.folder import Run
from processor.setup import Setup
from utils.errors import UserError
from utils.modality import Modality
from utils.runtime import _fp32_switches
from utils.settings import flat

PEOPLE = {"train": (1, 2, 3, 4), "val": (5,), "test": (6, 7, 8)}     # 8 RGB and 4 IR images each, files of 24 x 12
EPOCHS = {"prepare": 6, "prompt": 3, "finetune": 5}
ODD = {      # key -> another value than the default; the fixture fills in None
    "OUTPUT_DIR": None, "SEED": 7, "DEVICE": "cpu", "PRECISION": "tf32", "PSEUDO_LABEL_DIR": None,
    "DATASET.ROOT": None, "DATASET.CACHE_DIR": None, "DATASET.CACHE": "device",
    "INPUT.HEIGHT": 48, "INPUT.WIDTH": 32, "INPUT.GREY": 0.7, "INPUT.FLIP": 0.3, "INPUT.PAD": 2, "INPUT.ERASE": 0.6,
    "INPUT.NORMALISATION": "half", "INPUT.CHANNEL": 0.4, "MODEL.CLIP_WEIGHTS": None,
    "CLUSTER.K1": 9, "CLUSTER.K2": 3, "CLUSTER.EPS": 0.7, "CLUSTER.MIN_SAMPLES": 2,
    "MEMORY.TEMPERATURE": 0.07, "MEMORY.MOMENTUM": 0.3, "MEMORY.SWAP_EPOCH": 4, "MEMORY.SWAP_SCALE": 0.2,
    "MEMORY.SWAP_ORDER": "simultaneous",
    "SAMPLER.CLUSTERS": 3, "SAMPLER.INSTANCES": 4, "BATCH_NORM.SPLITS": 2,
    "OPTIM.LR": 0.0004, "OPTIM.BIAS_LR_FACTOR": 3.0, "OPTIM.WEIGHT_DECAY": 0.003, "OPTIM.WARMUP_EPOCHS": 3,
    "OPTIM.WARMUP_FACTOR": 0.25, "OPTIM.STEPS": [4, 5], "OPTIM.GAMMA": 0.5, "OPTIM.FACTORS": [["neck.", 0.1]],
    "PREPARE.EPOCHS": EPOCHS["prepare"],
    "PROMPT.EPOCHS": EPOCHS["prompt"], "PROMPT.BATCH_SIZE": 6, "PROMPT.LR": 0.004, "PROMPT.LR_MIN": 0.0002,
    "PROMPT.WARMUP_LR": 0.001, "PROMPT.WARMUP_EPOCHS": 2, "PROMPT.WEIGHT_DECAY": 0.03,
    "FINETUNE.EPOCHS": EPOCHS["finetune"], "FINETUNE.LABEL_SMOOTHING": 0.3, "FINETUNE.RESTART_AT_SWAP": True,
    "TEST.MODE": "indoor", "TEST.PROTOCOL": "original-1", "TEST.TRIALS": 3, "TEST.EVERY": 2, "TEST.BATCH_SIZE": 7,
    "CHECKPOINT.MINUTES": 2.5,
}
ELSEWHERE = {    # keys that the run cannot vary -> the test below that does, and why
    "DATASET.NAME": "test_data_set_settings: another data set is another folder layout",
    "DATASET.TRIAL": "test_data_set_settings: SYSU-MM01 is not split into trials",
    "DATASET.CHECK_COUNTS": "test_data_set_settings: it must be False for miniature data",
    **{f"MEMORY.{key}": "test_methods.py: test_settings_reach_the_methods, for the run is one of cclnet" for key in (
        "METHOD", "MATCH_BY", "RENEWAL", "CROSS_WEIGHT", "GRADIENTS", "HYBRID_WEIGHT", "RELATION", "RELATION_WEIGHT",
        "TOP_IMAGES")},
    "COMPILE": "test_compile.py: test_the_scripts_train_a_compiled_tower_if_asked, for compiling takes minutes",
    "MODEL.NAME": "test_vit.py: test_names: OpenAI's models are downloads, and a file's kind is read from it",
    "MODEL.STRIDE": "test_vit.py: test_a_run_of_both_scripts: a ResNet's stride is its own",
    "MODEL.TOWER": "test_docs.py: test_the_backbone_of_the_example_is_trained_and_tested, for CLIP's own have one name",
    "PREPARE.ALLOW_COLLAPSE": "test_setup.py: test_train_prepare_goes_past_a_collapse_if_asked, for this run has none",
    "PREPARE.RESTART_AT_SWAP": "test_setup.py: test_train_prepare_restarts_at_the_swap_epoch_if_asked, for here it "
                               "would hide what FINETUNE.RESTART_AT_SWAP reaches",
    "LOG.WANDB": "test_wandb.py: test_numbers_of_every_epoch, for the package is an extra",
}


class Watch:
    """What happened in a script: calls of the parts under `calls`, by name, each with its stage, epoch and step."""

    def __init__(self, patch):
        self.patch, self.calls, self.order = patch, {}, []
        self.stage = self.epoch = self.step = None
        self.minutes = 0.0          # on the clock that the run reads

    def note(self, name, **found):
        row = SimpleNamespace(stage=self.stage, epoch=self.epoch, step=self.step, **found)
        self.calls.setdefault(name, []).append(row)
        self.order.append((name, row))

    def of(self, name, stage=None):
        """The calls of a part, in a stage or in all; there are some."""
        rows = [row for row in self.calls.get(name, ()) if stage in (None, row.stage)]
        assert rows, f"{name} was never called"
        return rows

    def wrap(self, owner, name, keep=None, as_name=None):
        """Record each call with its arguments and result, and what keep(*arguments) gives before and after it."""
        real = getattr(owner, name)

        def wrapped(*arguments, **named):
            before = keep(*arguments) if keep else None
            result = real(*arguments, **named)
            self.note(as_name or name, arguments=arguments, named=named, result=result, before=before,
                      after=keep(*arguments) if keep else None)
            return result

        self.patch.setattr(owner, name, wrapped)


def rounding():
    return tuple(getattr(owner, switch) for owner, switch, _ in _fp32_switches())


def watch_loop(watch):
    """Follow stage, epoch and step of the loop."""
    real = {name: getattr(processor.train, name) for name in ("Batches", "train_step")}

    class Batches(real["Batches"]):
        def __init__(self, images, labels, settings, epoch, *rest):
            watch.epoch, watch.step = epoch, 0
            super().__init__(images, labels, settings, epoch, *rest)
            watch.note("Batches", labels=labels, positions=self.positions, length=len(self))

    def train_step(model, *rest):
        watch.step += 1
        watch.minutes += 1
        result = real["train_step"](model, *rest)
        watch.note("train_step", arguments=(model, *rest), result=result)
        return result

    watch.patch.setattr(processor.train, "Batches", Batches)
    watch.patch.setattr(processor.train, "train_step", train_step)
    watch.patch.setattr(processor.run.folder, "time", SimpleNamespace(monotonic=lambda: 60 * watch.minutes))
    epochs_left = Run.epochs_left

    def noted(run, stage, state, epochs):
        for epoch in epochs_left(run, stage, state, epochs):
            watch.stage, watch.epoch, watch.step = stage, epoch, 0
            watch.note("epoch", epochs=epochs)
            yield epoch

    watch.patch.setattr(Run, "epochs_left", noted)


def watch_parts(watch):
    """Record what the parts are given and give back."""
    def prototypes(memory, *_):
        return memory.prototypes.clone()

    for owner, names in ((processor.setup, ("open_bank", "load_tower")), (data.pseudo_labels, ("cluster",)),
                         (clustering.clustering, ("k_nearest", "query_expansion", "jaccard_graph", "DBSCAN")),
                         (data.augment, ("draw", "apply")), (processor.features, ("normalise",)),
                         (processor.guidance, ("image_to_text",)), (processor.evaluate.Tester, ("__call__",)),
                         (processor.evaluate, ("rank_metrics",)), (Run, ("save_state",))):
        for name in names:
            watch.wrap(owner, name)
    for module in (processor.train, processor.prompt):
        watch.wrap(module, "numpy_rng", as_name="stream")
    watch.wrap(processor.prompt, "torch_rng", as_name="stream")
    watch.wrap(processor.prompt, "prompt_step")
    for name in ("forward", "encode"):
        watch.wrap(CCLNet, name, keep=lambda model, *_: (rounding(), model.training))
    watch.wrap(loss.cluster_memory.ClusterMemory, "loss", keep=prototypes, as_name="memory loss")
    watch.wrap(loss.cluster_memory.ClusterMemory, "update", keep=prototypes, as_name="memory update")
    real = loss.cclnet.swap

    def swap(rgb, ir, *rest):
        before = rgb.clone(), ir.clone()
        real(rgb, ir, *rest)
        watch.note("swap", arguments=rest, before=before, result=(rgb.clone(), ir.clone()))

    watch.patch.setattr(loss.cclnet, "swap", swap)
    backward = torch.Tensor.backward

    def watched(tensor, *arguments, **named):
        watch.note("backward", before=(rounding(), True))
        return backward(tensor, *arguments, **named)

    watch.patch.setattr(torch.Tensor, "backward", watched)


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_clip_file):
    """Both scripts, run once with all odd values: script -> `Watch`; folders; the words' values."""
    folder = tmp_path_factory.mktemp("reach")
    root = trees.people_tree(folder / "people", ids=PEOPLE)
    trees.permutation_file(root, trials=3, persons=8)
    labels = {m: np.repeat([0, 1, 2, 0, -1], 40 // 5 if m is Modality.RGB else 20 // 5) for m in Modality}
    (folder / "labels").mkdir()
    for m in Modality:
        np.save(folder / "labels" / FILE_NAMES[m], labels[m])
    values = {**ODD, "OUTPUT_DIR": folder / "run", "PSEUDO_LABEL_DIR": folder / "labels", "DATASET.ROOT": root,
              "DATASET.CACHE_DIR": folder / "cache", "MODEL.CLIP_WEIGHTS": tiny_clip_file}
    words = ["DATASET.CHECK_COUNTS", "False", *(str(word) for pair in values.items() for word in pair)]
    watches = {}
    for script in ("train_prepare", "train_clip"):
        with pytest.MonkeyPatch.context() as patch:
            watch = watches[script] = Watch(patch)
            watch_loop(watch)
            watch_parts(watch)
            patch.setattr(processor.run.folder, "save_report", lambda *_: None)

            def before_step(optimizer, *_, watch=watch):
                watch.note("optimizer step", groups=[{k: g[k] for k in ("lr", "weight_decay")}
                                                     for g in optimizer.param_groups],
                           parameters=[[id(p) for p in g["params"]] for g in optimizer.param_groups],
                           done=max((int(s["step"]) for s in optimizer.state.values()), default=0))

            hook = register_optimizer_step_pre_hook(before_step)
            try:
                assert scripts.call(scripts.load(script), words) == 0
            finally:
                hook.remove()
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return SimpleNamespace(folder=folder, values=values, labels=labels, rows=rows, clip=tiny_clip_file,
                           prepare=watches["train_prepare"], finetune=watches["train_clip"])


def watches(run):
    """The loop's two stages: name, `Watch`."""
    return ("prepare", run.prepare), ("finetune", run.finetune)


def banks(watch, split):
    return {call.arguments[0].modality: call.result for call in watch.of("open_bank") if call.arguments[3] == split}


def values_of(rows, get):
    """The one value that all calls agree on."""
    found = {get(row) for row in rows}
    assert len(found) == 1, found
    return found.pop()


# ---- Files and data

def output_dir(run):
    made = {path.name for path in (run.folder / "run").iterdir()}
    assert {"config.yml", "log.txt", "metrics.jsonl", "prepare_last.pth", "model_last.pth", "pseudo_labels"} <= made


def pseudo_label_dir(run):
    for call in run.finetune.of("prompt_step"):
        _, prompts, _, _, labels = call.arguments
        assert all(len(prompts[m].context) == 3 and set(labels[m]) <= {0, 1, 2} for m in Modality)


def dataset_root(run):
    for _, watch in watches(run):
        assert {call.arguments[1] for call in watch.of("open_bank")} == {run.folder / "people"}


def cache_dir(run):
    assert (run.folder / "cache" / "train_rgb_resized_img.npy").is_file()
    assert not list((run.folder / "people").glob("*.npy"))


def cache(run):
    for _, watch in watches(run):
        assert all(call.result._copy is not None for call in watch.of("open_bank"))


def device(run):
    assert values_of(run.prepare.of("open_bank"), lambda call: call.result.device.type) == "cpu"
    assert "on cpu" in (run.folder / "run" / "log.txt").read_text()


def clip_weights(run):
    assert run.prepare.of("load_tower")[0].arguments == (run.clip, "", "RN50")
    expected = CCLNet(load_tower(run.clip, height=48, width=32))
    for _, watch in watches(run):
        first = watch.of("encode")[0]
        with torch.inference_mode():
            out = expected.eval().encode(*first.arguments[1:])
        assert set(out) == set(first.result)
        for head, rows in out.items():
            torch.testing.assert_close(first.result[head], rows)


def seed(run):
    for _, watch in watches(run):
        assert values_of(watch.of("stream"), lambda call: call.arguments[0]) == 7
    purposes = {call.arguments[1] for _, watch in watches(run) for call in watch.of("stream")}
    assert purposes == {"sampler", "augment", "prompts", "prompt batches"}


# ---- Images

def height_and_width(run):
    for _, watch in watches(run):
        for call in watch.of("forward"):
            assert [tuple(images.shape) for images in call.arguments[1:3]] == [(12, 3, 48, 32)] * 2
        assert values_of(watch.of("encode"), lambda call: tuple(call.arguments[1].shape[1:])) == (3, 48, 32)


def policies(watch):
    """What was drawn for the batches: modality -> [(policy, plan)], by the name of the stream."""
    names = {id(call.result): call.arguments for call in watch.of("stream")}
    found = {m: [] for m in Modality}
    for call in watch.of("draw"):
        policy, _, _, rng = call.arguments
        _, purpose, modality, epoch, step = names[id(rng)]
        assert (purpose, epoch, step) == ("augment", call.epoch, call.step)
        found[Modality(modality)].append((policy, call.result))
    return found


def augmentation(run):
    """Grey and channel exchange are drawn for visible images alone; flip, padding and erasing for both."""
    for _, watch in watches(run):
        drawn = policies(watch)
        grey = {Modality.RGB: 0.7, Modality.IR: 0.0}
        for m in Modality:
            exchanged = {Modality.RGB: 0.4, Modality.IR: 0.0}[m]
            assert {policy for policy, _ in drawn[m]} == {Augmentation(grey[m], 0.3, 2, 0.6, exchanged)}
            plans = [plan for _, plan in drawn[m]]
            error = 4 * 0.5 / (12 * len(plans)) ** 0.5
            shares = {"grey": grey[m], "flip": 0.3}
            for name, share in shares.items():
                assert np.concatenate([getattr(p, name) for p in plans]).mean() == pytest.approx(share, abs=error)
            corners, erased = (np.concatenate([getattr(p, name) for p in plans]) for name in ("corner", "erased"))
            assert set(corners.ravel()) == {-2, -1, 0, 1, 2}
            assert (erased[:, 2] > 0).mean() == pytest.approx(0.6, abs=error)
            channels = np.concatenate([plan.channel for plan in plans])
            assert (channels >= 0).mean() == pytest.approx(exchanged, abs=error)


def trained_images_are_augmented(run):
    """What the model is trained on is what was augmented, image by image of the batch."""
    for _, watch in watches(run):
        made = {m: [] for m in Modality}
        for apply, draw in zip(watch.of("apply"), watch.of("draw"), strict=True):
            assert apply.arguments[1] is draw.result and apply.arguments[2] == "half"
        for number, call in enumerate(watch.of("apply")):
            made[list(Modality)[number % 2]].append(call.result)
        for call, rgb, ir in zip(watch.of("forward"), made[Modality.RGB], made[Modality.IR], strict=True):
            assert call.arguments[1] is rgb and call.arguments[2] is ir
        first = watch.of("apply")[0]
        assert {call.before[1] for call in watch.of("forward")} == {True}
        assert not torch.equal(first.result, data.augment.normalise(first.arguments[0]))


def embedded_images_are_not_augmented(run):
    for _, watch in watches(run):
        calls = watch.of("encode")
        for call, normalised in zip(calls, watch.of("normalise"), strict=True):
            assert call.arguments[1] is normalised.result and call.before[1] is False
        images = torch.cat([call.arguments[1] for call in calls if call.arguments[2] is Modality.RGB][:6])   # 40 by 7
        bank = banks(watch, "train")[Modality.RGB]
        torch.testing.assert_close(images, data.augment.normalise(bank.batch(np.arange(40)), "half"))


# ---- Clusters and memories

def clustering(run):
    """K1, K2, EPS and MIN_SAMPLES, in that order, and each in the step that it belongs to."""
    for stage, watch in watches(run):
        calls = watch.of("cluster", stage)
        assert len(calls) == 2 * EPOCHS[stage] and all(call.arguments[1:] == (9, 3, 0.7, 2) for call in calls)
        assert values_of(watch.of("k_nearest"), lambda call: call.arguments[1]) == 9
        assert values_of(watch.of("query_expansion"), lambda call: call.arguments[1].shape[1]) == 3
        assert values_of(watch.of("jaccard_graph"), lambda call: call.arguments[1]) == 0.7
        assert values_of(watch.of("DBSCAN"), lambda call: (call.named["eps"], call.named["min_samples"])) == (0.7, 2)


def temperature(run):
    """The loss is that of the temperature 0.07."""
    for stage, watch in watches(run):
        for call in watch.of("memory loss", stage):
            _, x, labels = call.arguments
            cosine = F.normalize(x, dim=1) @ call.before.T
            expected = F.cross_entropy(cosine / 0.07, torch.from_numpy(labels))
            torch.testing.assert_close(call.result.detach(), expected.detach())


def momentum(run):
    """After an update a prototype has kept 0.3 of itself, sample by sample."""
    for stage, watch in watches(run):
        updates = watch.of("memory update", stage)
        assert len(updates) == 2 * len(watch.of("train_step"))
        for call in updates:
            expected = call.before.clone()
            for sample, label in zip(F.normalize(call.arguments[1].detach(), dim=1), call.arguments[2]):
                expected[label] = F.normalize(0.3 * expected[label] + 0.7 * sample, dim=0)
            torch.testing.assert_close(call.after, expected)
        assert all((call.after - call.before).abs().max() > 1e-4 for call in updates)


def swap_epoch(run):
    for stage, watch in watches(run):
        steps = {epoch: sum(call.epoch == epoch for call in watch.of("train_step"))
                 for epoch in range(1, EPOCHS[stage] + 1)}
        swaps = {epoch: sum(call.epoch == epoch for call in watch.of("swap", stage)) for epoch in steps}
        assert swaps == {epoch: count if epoch >= 4 else 0 for epoch, count in steps.items()}


def swapped(call, scale, simultaneous):
    """Both modalities' prototypes after a swap, pair by pair."""
    links, labels = call.arguments[:2]
    rgb, ir = (values.clone() for values in call.before)
    for r, i in zip(*links.pairs()):
        old_rgb, old_ir = rgb[r].clone(), ir[i].clone()
        if r in labels[Modality.RGB]:
            rgb[r] = F.normalize(scale * rgb[r] + (1 - scale) * old_ir, dim=0)
        if i in labels[Modality.IR]:
            ir[i] = F.normalize(scale * ir[i] + (1 - scale) * (old_rgb if simultaneous else rgb[r]), dim=0)
    return rgb, ir


def swap_scale_and_order(run):
    """A swapped prototype keeps 0.2 of itself and takes 0.8 of its partner's value before the swap."""
    for stage, watch in watches(run):
        calls = watch.of("swap", stage)
        for call in calls:
            for found, expected in zip(call.result, swapped(call, 0.2, True)):
                torch.testing.assert_close(found, expected)
        assert any((swapped(call, 0.2, False)[1] - call.result[1]).abs().max() > 1e-3 for call in calls)


def sampler(run):
    """A batch is 3 clusters of 4 images each, in both modalities, side by side."""
    for stage, watch in watches(run):
        for call in watch.of("Batches", stage):
            for m in Modality:
                drawn = call.labels[m][call.positions[m]]
                assert drawn.shape[1] == 12 and (drawn >= 0).all()
                blocks = drawn.reshape(-1, 3, 4)
                assert (blocks == blocks[:, :, :1]).all()
                if call.labels[m].max() >= 2:
                    assert all(len(set(row)) == 3 for row in blocks[:, :, 0].tolist())
            labelled = max(int((call.labels[m] >= 0).sum()) for m in Modality)
            assert call.length == labelled // 12 + 1


# ---- Optimisers

def rates(watch, stage):
    """The learning rates of a stage's epochs as the optimiser used them: epoch -> of each group."""
    found = {}
    for call in watch.of("optimizer step", stage):
        found.setdefault(call.epoch, set()).add(tuple(round(group["lr"], 12) for group in call.groups))
    assert all(len(rows) == 1 for rows in found.values())
    return {epoch: rows.pop() for epoch, rows in found.items()}


def learning_rates(run):
    """0.0004 times the factor of the epoch, biases three times that; the fine-tune warms up again at epoch 4."""
    factors = {"prepare": (0.5, 0.75, 1, 0.5, 0.25, 0.25), "finetune": (0.5, 0.75, 1, 0.5, 0.75)}
    for stage, watch in watches(run):
        found = rates(watch, stage)
        for group, base in enumerate((0.0004, 0.0012, 0.00004)):
            used = [found[epoch][group] for epoch in range(1, EPOCHS[stage] + 1)]
            assert used == pytest.approx([base * factor for factor in factors[stage]])


def parameter_groups(run):
    for stage, watch in watches(run):
        model = watch.of("train_step")[0].arguments[0]
        names = {id(p): name for name, p in model.named_parameters()}
        call = watch.of("optimizer step", stage)[0]
        plain, biases, slow, none = ({names[key] for key in group} for group in call.parameters)
        assert biases == {name for name in names.values() if "bias" in name} - {"neck.bias"}
        assert plain == {name for name in names.values() if "bias" not in name} - {"neck.weight"}
        assert slow == {"neck.weight"} and not none


def batch_norm_splits(run):
    """Every batch norm takes two parts of the batch; those of the stems see one modality, the others both."""
    for _, watch in watches(run):
        model = watch.of("train_step")[0].arguments[0]
        norms = {name: norm for name, norm in model.named_modules() if isinstance(norm, _BatchNorm)}
        assert len(norms) > 10
        for name, norm in norms.items():
            assert (norm.parts, norm.shares) == (2, (1,) if ".stems." in name else (1, 1)), name


def weight_decay(run):
    for stage, watch in watches(run):
        assert {group["weight_decay"] for call in watch.of("optimizer step", stage) for group in call.groups} == {0.003}


def restart(run):
    """Adam's own count of its steps begins anew at epoch 4 of the fine-tune, and nowhere else."""
    for stage, watch in watches(run):
        first = {}
        for call in watch.of("optimizer step", stage):
            first.setdefault(call.epoch, call.done)
        assert [epoch for epoch, done in first.items() if done == 0] == ([1, 4] if stage == "finetune" else [1])


def epochs(run):
    found = {stage: [row["epoch"] for row in run.rows if row["stage"] == stage] for stage in EPOCHS}
    assert found == {stage: list(range(1, epochs + 1)) for stage, epochs in EPOCHS.items()}


def prompt_rates(run):
    """Warm-up from 0.001 in epoch 1, then the cosine from 0.004, and 0.0002 in the last."""
    found = rates(run.finetune, "prompt")
    assert [found[epoch] for epoch in (1, 2, 3)] == [pytest.approx((rate,)) for rate in (0.0025, 0.00115, 0.0002)]


def prompt_weight_decay(run):
    calls = run.finetune.of("optimizer step", "prompt")
    assert values_of(calls, lambda call: call.groups[0]["weight_decay"]) == 0.03


def prompt_batch_size(run):
    sizes = [len(call.arguments[4][m]) for call in run.finetune.of("prompt_step") for m in Modality]
    assert max(sizes) == 6 and len(sizes) == 2 * 3 * 6      # 32 labelled RGB images, by 6, in 3 epochs


def label_smoothing(run):
    for call in run.finetune.of("image_to_text"):
        projections, texts, labels, smoothing = call.arguments
        assert smoothing == 0.3
        kept = labels >= 0
        if kept.any():
            expected = F.cross_entropy((projections @ texts.T)[kept], labels[kept], label_smoothing=0.3)
            torch.testing.assert_close(call.result.detach(), expected.detach())
    assert any((call.arguments[2] < 0).any() for call in run.finetune.of("image_to_text"))
    steps = run.finetune.of("train_step")
    for number, call in enumerate(steps):       # the labels are those of the folder, not the epoch's
        positions = call.arguments[3].positions
        for offset, m in enumerate(Modality):
            given = run.finetune.of("image_to_text")[2 * number + offset].arguments[2]
            np.testing.assert_array_equal(given, run.labels[m][positions[m]])


def precision(run):
    """TF32 in matrix products and convolutions while the model runs forward and backward; not before or after."""
    tf32 = ("tf32", "tf32") if isinstance(rounding()[0], str) else (True, True)
    for stage, watch in watches(run):
        for name in ("forward", "encode", "backward"):
            assert {call.before[0] for call in watch.of(name, stage)} == {tf32}, name
    assert rounding() != tf32


# ---- Tests and states

def every_epochs(run):
    for stage, watch in watches(run):
        assert [row["epoch"] for row in run.rows if row["stage"] == stage and "test" in row] == [2, 4, EPOCHS[stage]]
        assert len(watch.of("__call__", stage)) == 3


def batch_size(run):
    """Both for tests and for the embedding of the training images."""
    for _, watch in watches(run):
        sizes = [len(call.arguments[1]) for call in watch.of("encode")]
        assert max(sizes) == 7 and sizes[:6] == [7, 7, 7, 7, 7, 5]


def trials(run):
    """The first three rows of the file of permutations."""
    for row in run.rows:
        if "test" in row:
            assert [trial["trial"] for trial in row["test"]["per_trial"]] == [1, 2, 3]


def mode(run):
    """In indoor search the gallery is cameras 1 and 2: one image of each of three persons."""
    for _, watch in watches(run):
        for call in watch.of("rank_metrics"):
            _, _, gallery_ids, _, gallery_cams, _ = call.arguments
            assert set(gallery_cams) == {1, 2} and len(gallery_ids) == 6
    assert {row["test"]["mode"] for row in run.rows if "test" in row} == {"indoor"}


def protocol(run):
    found = {row["test"]["protocol"] for row in run.rows if "test" in row}
    assert len(found) == 1 and "original" in found.pop()


def checkpoint_minutes(run):
    """At a minute a step, the state is saved after every third step, and at each epoch's end."""
    for stage, watch in watches(run):
        order = [name for name, row in watch.order if row.stage == stage and name in ("train_step", "save_state")]
        runs = "".join("s" if name == "train_step" else "|" for name in order).split("|")
        steps = [call.length for call in watch.of("Batches", stage)]
        assert steps[0] >= 3 and runs == [part for n in steps for part in ["sss"] * (n // 3) + ["s" * (n % 3)]] + [""]


REACHES = {      # key -> what must show
    "OUTPUT_DIR": output_dir, "SEED": seed, "DEVICE": device, "PRECISION": precision,
    "PSEUDO_LABEL_DIR": pseudo_label_dir, "DATASET.ROOT": dataset_root, "DATASET.CACHE_DIR": cache_dir,
    "DATASET.CACHE": cache, "INPUT.HEIGHT": height_and_width, "INPUT.WIDTH": height_and_width,
    "INPUT.GREY": augmentation, "INPUT.FLIP": augmentation, "INPUT.PAD": augmentation, "INPUT.ERASE": augmentation,
    "INPUT.NORMALISATION": trained_images_are_augmented, "OPTIM.FACTORS": learning_rates, "INPUT.CHANNEL": augmentation,
    "MODEL.CLIP_WEIGHTS": clip_weights, "CLUSTER.K1": clustering, "CLUSTER.K2": clustering,
    "CLUSTER.EPS": clustering, "CLUSTER.MIN_SAMPLES": clustering, "MEMORY.TEMPERATURE": temperature,
    "MEMORY.MOMENTUM": momentum, "MEMORY.SWAP_EPOCH": swap_epoch, "MEMORY.SWAP_SCALE": swap_scale_and_order,
    "MEMORY.SWAP_ORDER": swap_scale_and_order, "SAMPLER.CLUSTERS": sampler, "SAMPLER.INSTANCES": sampler,
    "BATCH_NORM.SPLITS": batch_norm_splits,
    "OPTIM.LR": learning_rates, "OPTIM.BIAS_LR_FACTOR": learning_rates, "OPTIM.WEIGHT_DECAY": weight_decay,
    "OPTIM.WARMUP_EPOCHS": learning_rates, "OPTIM.WARMUP_FACTOR": learning_rates, "OPTIM.STEPS": learning_rates,
    "OPTIM.GAMMA": learning_rates, "PREPARE.EPOCHS": epochs, "PROMPT.EPOCHS": epochs,
    "PROMPT.BATCH_SIZE": prompt_batch_size, "PROMPT.LR": prompt_rates, "PROMPT.LR_MIN": prompt_rates,
    "PROMPT.WARMUP_LR": prompt_rates, "PROMPT.WARMUP_EPOCHS": prompt_rates,
    "PROMPT.WEIGHT_DECAY": prompt_weight_decay, "FINETUNE.EPOCHS": epochs,
    "FINETUNE.LABEL_SMOOTHING": label_smoothing, "FINETUNE.RESTART_AT_SWAP": restart, "TEST.MODE": mode,
    "TEST.PROTOCOL": protocol, "TEST.TRIALS": trials, "TEST.EVERY": every_epochs,
    "TEST.BATCH_SIZE": batch_size, "CHECKPOINT.MINUTES": checkpoint_minutes,
}


@pytest.mark.parametrize("key", REACHES)
def test_setting_reaches_its_use(run, key):
    REACHES[key](run)


def texts_are_those_of_the_learned_prompts(run):
    learned = run.finetune.of("prompt_step")[-1].arguments[1]
    expected = text_features(TextTower(load_clip(run.clip)), learned)
    for number, call in enumerate(run.finetune.of("image_to_text")):
        torch.testing.assert_close(call.arguments[1], expected[tuple(Modality)[number % 2]])


@pytest.mark.parametrize("what", [trained_images_are_augmented, embedded_images_are_not_augmented, parameter_groups,
                                  texts_are_those_of_the_learned_prompts])
def test_beside_the_settings(run, what):
    what(run)


def test_the_table_holds_every_key():
    defaults = flat(as_dict(load_config()))
    assert set(REACHES) | set(ELSEWHERE) == set(defaults) and not set(REACHES) & set(ELSEWHERE)
    assert set(REACHES) == set(ODD)
    assert not [key for key, value in ODD.items() if value == defaults[key]]


def test_data_set_settings(tmp_path):
    """NAME chooses the layout, TRIAL the lists that are read, and CHECK_COUNTS whether miniature data are refused."""
    root = trees.regdb_tree(tmp_path / "RegDB", trials=(1, 2))

    def read(trial, check):
        return Setup(load_config(None, ["DATASET.NAME", "regdb", "DATASET.ROOT", str(root), "DATASET.TRIAL", str(trial),
                                        "DATASET.CHECK_COUNTS", str(check), "DEVICE", "cpu"]), "test").data

    first, second = read(1, False), read(2, False)
    assert (first.name, first.trial, second.trial) == ("RegDB", 1, 2)
    assert first.train[Modality.RGB].paths != second.train[Modality.RGB].paths
    with pytest.raises(UserError, match="2,060|2060"):
        read(1, True)
