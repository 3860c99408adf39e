"""The stages as the scripts call them: train, log every epoch, test now and then, save."""
from functools import partial

import numpy as np
import torch

from processor.contrast import ContrastStage, TextGuidance
from processor.evaluate import evaluate, format_table, metrics_record
from processor.finite import non_finite_report
from processor.prompt import PromptStage, text_features
from processor.pseudo_labels import collapse_warnings, save_pseudo_labels
from utils.diagnosis import diagnose
from utils.events import memory_use
from utils.modality import Modality
from utils.report.content import stage_content
from utils.report.write import save_report


class Tester:
    """Evaluates a model on one protocol. Args: as `evaluate`; every: epochs between evaluations."""

    def __init__(self, data, banks, retrieval, batch_size=64, every=10, mode="fp32"):
        self.data = data
        self.banks = banks
        self.retrieval = retrieval
        self.batch_size = batch_size
        self.every = every
        self.mode = mode

    @property
    def device(self):
        """Where the test images go."""
        return self.banks[Modality.RGB].device

    def is_due(self, epoch, epochs):
        """Every few epochs, and after the last."""
        return epoch == epochs or epoch % self.every == 0

    def __call__(self, model):
        """The `Evaluation` of a model."""
        return evaluate(model, self.data, self.banks, self.retrieval, self.batch_size, self.mode)


def run_prepare(model, banks, settings, run):
    """train_prepare.py: contrastive stage without texts; saves the labels of the last epoch's clustering."""
    stage = ContrastStage(model, banks, settings)
    if run.resumed:
        stage.load_state_dict(run.resumed["contrast"])

    def save_labels(report):
        folder = run.output_dir / "pseudo_labels"
        save_pseudo_labels(folder, report.labels, run.facts["manifest"])
        run.log.info(f"pseudo labels written to {folder}")

    with non_finite_report(run.output_dir):
        _run_contrast("prepare", stage, run, lambda: {"contrast": stage.state_dict()}, at_end=save_labels)


def run_clip(model, text, banks, labels, prompt_settings, contrast_settings, smoothing, run):
    """train_clip.py: prompt stage, then the contrastive stage guided by the texts of the learned prompts.

    Args: labels: Modality -> (N,) pseudo labels of train_prepare.py; smoothing: of the image-to-text loss.
    """
    prompts = PromptStage(model, text, banks, labels, prompt_settings)
    if run.resumed:
        prompts.load_state_dict(run.resumed["prompt"])
    with non_finite_report(run.output_dir):
        _run_prompts(prompts, run)
        guidance = TextGuidance(text_features(text, prompts.prompts), labels, smoothing)
        stage = ContrastStage(model, banks, contrast_settings, guidance, prompts.features)
        prompts.features = None             # the stage drops them after its first clustering
        if "contrast" in run.resumed:
            stage.load_state_dict(run.resumed["contrast"])
        _run_contrast("model", stage, run, lambda: {"prompt": prompts.state_dict(), "contrast": stage.state_dict()},
                      {"prompts": {m.value: _on_host(prompts.prompts[m].state_dict()) for m in Modality}})


def _run_prompts(stage, run):
    # A stop within an epoch goes back to the epoch's start: an epoch of prompts takes seconds.
    at_epoch_start = {"prompt": _on_host(stage.state_dict())}
    check = run.after_step(lambda: dict(at_epoch_start))
    for report in stage.epochs(check):
        run.log.info(f"prompts {report.epoch}/{stage.settings.epochs} | loss {report.loss:.4f} | lr {report.lr:.2e} | "
                     f"{report.seconds:.1f} s")
        run.record("prompt", epoch=report.epoch, loss=report.loss, lr=report.lr, seconds=report.seconds,
                   **memory_use(stage.text.positional_embedding.device))
        at_epoch_start["prompt"] = _on_host(stage.state_dict())
        run.save(at_epoch_start)


def _run_contrast(name, stage, run, snapshot, extra=None, at_end=lambda report: None):
    """Train the epochs left; NAME_last.pth after every epoch, NAME_best.pth after the best test so far.

    Args: snapshot: gives the states of the script's stages; extra: further entries of the checkpoints;
        at_end: called with the last epoch's report, before that epoch counts as done.
    """
    epochs = stage.settings.epochs
    if stage.epoch > epochs:
        run.log.info(f"all {epochs} epochs were trained already; add --fresh to start over")
    elif stage.epoch > 1 or stage.iteration:
        run.log.info(f"going on with epoch {stage.epoch}, iteration {stage.iteration + 1}")
    for report in stage.epochs(run.after_step(snapshot)):
        numbers = {**epoch_numbers(report), **diagnose(report.labels, report.pairs, run.persons),
                   **memory_use(run.tester.device)}
        run.log.info(epoch_line(name, report, epochs, numbers))
        for warning in collapse_warnings(report.labels):
            run.log.info(warning)
        content = {"stage": name, "epoch": report.epoch, "state_dict": _on_host(stage.model.state_dict()),
                   **(extra or {})}
        if run.tester.is_due(report.epoch, epochs):
            evaluation = run.tester(stage.model)
            content["metrics"] = metrics_record(evaluation, run.tester.data)
            run.log.info(f"epoch {report.epoch}, {evaluation.protocol}\n"
                         + format_table([{"what": name, **evaluation.mean()}]))
            if evaluation.mean()["rank1"] > run.best:
                run.best = evaluation.mean()["rank1"]
                run.save_model(f"{name}_best", {**content, "selected": "best Rank-1 on test data"})
        run.save_model(f"{name}_last", content)
        run.record(name, cluster_sizes(report.labels), **numbers,
                   **({"test": content["metrics"]} if "metrics" in content else {}))
        if report.epoch == epochs:
            at_end(report)
        run.save(snapshot())
        if report.epoch == epochs:
            save_report(run.output_dir, run.log, name, partial(
                stage_content, name, run.tester.data, run.tester.banks, run.tester.retrieval, evaluation,
                stage.banks, report.labels, report.pairs, run.persons))


def epoch_numbers(report):
    """An `EpochReport` as plain numbers, for metrics.jsonl."""
    clusters = {f"clusters_{m.value}": int(labels.max()) + 1 for m, labels in report.labels.items()}
    outliers = {f"outliers_{m.value}": int((labels < 0).sum()) for m, labels in report.labels.items()}
    sizes = {f"{name}_{what}": float(function(values)) for name, values in cluster_sizes(report.labels).items()
             for what, function in (("median", np.median), ("max", np.max))}
    return {"epoch": report.epoch, **report.losses, **clusters, **outliers, **sizes, "lr": report.lr,
            "matched": report.matched, "matched_similarity": report.similarity,
            "images_per_second": report.images_per_second, "seconds": report.seconds}


def cluster_sizes(labels):
    """{"cluster_size_rgb", "cluster_size_ir"}: (K,) images per cluster of labels (Modality -> (N,))."""
    return {f"cluster_size_{m.value}": np.bincount(values[values >= 0]) for m, values in labels.items()}


def epoch_line(name, report, epochs, numbers):
    """One tidy line about an epoch with the numbers of `epoch_numbers` and, where there is one, its diagnosis."""
    clusters = ", ".join(f"{m} {numbers[f'clusters_{m}']} clusters {numbers[f'outliers_{m}']} outliers"
                         for m in (modality.value for modality in report.labels))
    losses = " ".join(f"{k} {v:.4f}" for k, v in report.losses.items())
    left = report.seconds * (epochs - report.epoch)
    swapped = f" | {report.matched:.0f} pairs matched" if report.matched else ""
    if "ari_rgb" in numbers:
        swapped += (f" | ARI {numbers['ari_rgb']:.2f} {numbers['ari_ir']:.2f}, "
                    f"{100 * numbers['matching_accuracy']:.0f}% of pairs right")
    return (f"{name} {report.epoch}/{epochs} | {losses} | {clusters}{swapped} | lr {report.lr:.2e} | "
            f"{report.images_per_second:.0f} images/s | {report.seconds:.1f} s, {left / 60:.0f} min left")


def _on_host(state):
    """A state dict's tensors as copies on the host, at any depth."""
    if isinstance(state, torch.Tensor):
        return state.detach().cpu().clone()
    if isinstance(state, dict):
        return {k: _on_host(v) for k, v in state.items()}
    return [_on_host(v) for v in state] if isinstance(state, list) else state
