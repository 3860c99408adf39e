"""The stages as the scripts call them: train, log every epoch, evaluate now and then, save."""
from pathlib import Path

from processor.contrast import TextGuidance, contrast_epochs
from processor.evaluate import evaluate, format_table, metrics_record
from processor.prompt import new_prompts, prompt_epochs, text_features
from processor.pseudo_labels import save_pseudo_labels
from utils.checkpoint import save_checkpoint
from utils.modality import Modality

FORMAT = "cclnet-1"


class Tester:
    """Evaluates a model on one protocol. Args: as `evaluate`; every: epochs between evaluations."""

    def __init__(self, data, banks, retrieval, batch_size=64, every=10):
        self.data = data
        self.banks = banks
        self.retrieval = retrieval
        self.batch_size = batch_size
        self.every = every

    def is_due(self, epoch, epochs):
        """Every few epochs, and after the last."""
        return epoch == epochs or epoch % self.every == 0

    def __call__(self, model):
        """The `Evaluation` of a model."""
        return evaluate(model, self.data, self.banks, self.retrieval, self.batch_size)


def run_contrast(name, model, banks, settings, tester, output_dir, log, facts, guidance=None, extra=None):
    """Train a contrastive stage; write NAME_last.pth after every epoch and NAME_best.pth after the best test.

    Args:
        name: "prepare" or "model", first part of the file names; facts: dict stored in every checkpoint
        (configuration, data set); extra: further entries of the checkpoint, such as prompts.
    Returns:
        The `EpochReport` of the last epoch and the last `Evaluation`.
    """
    output_dir, best = Path(output_dir), -1.0
    for report in contrast_epochs(model, banks, settings, guidance):
        log.info(epoch_line(name, report, settings.epochs))
        content = {"format": FORMAT, "stage": name, "epoch": report.epoch, "state_dict": _on_host(model.state_dict()),
                   "losses": report.losses, **facts, **(extra or {})}
        if tester.is_due(report.epoch, settings.epochs):
            evaluation = tester(model)
            content["metrics"] = metrics_record(evaluation, tester.data)
            log.info(f"epoch {report.epoch}, {evaluation.protocol}\n"
                     + format_table([{"what": name, **evaluation.mean()}]))
            if evaluation.mean()["rank1"] > best:
                best = evaluation.mean()["rank1"]
                save_checkpoint(output_dir / f"{name}_best.pth", {**content, "selected": "best Rank-1 on test data"})
        save_checkpoint(output_dir / f"{name}_last.pth", content)
    return report, evaluation


def run_prepare(model, banks, settings, tester, output_dir, log, facts):
    """train_prepare.py: contrastive stage without texts; saves the labels of the last epoch's clustering."""
    report, evaluation = run_contrast("prepare", model, banks, settings, tester, output_dir, log, facts)
    folder = Path(output_dir) / "pseudo_labels"
    save_pseudo_labels(folder, {m: report.pseudo_labels[m].labels for m in Modality}, facts["manifest"])
    log.info(f"pseudo labels written to {folder}")
    return evaluation


def run_clip(model, text, banks, labels, prompt_settings, contrast_settings, smoothing, tester, output_dir, log, facts):
    """train_clip.py: prompt stage, then the contrastive stage guided by the texts of the learned prompts."""
    prompts = new_prompts(labels, text, prompt_settings.seed)
    for report in prompt_epochs(model, text, prompts, banks, labels, prompt_settings):
        log.info(f"prompts {report.epoch}/{prompt_settings.epochs} | loss {report.loss:.4f} | lr {report.lr:.2e} | "
                 f"{report.seconds:.1f} s")
    guidance = TextGuidance(text_features(text, prompts), labels, smoothing)
    extra = {"prompts": {m.value: _on_host(prompts[m].state_dict()) for m in Modality}}
    _, evaluation = run_contrast("model", model, banks, contrast_settings, tester, output_dir, log, facts, guidance,
                                 extra)
    return evaluation


def epoch_line(name, report, epochs):
    """One tidy line about an epoch."""
    clusters = ", ".join(f"{m.value} {p.clusters} clusters {p.outliers} outliers"
                         for m, p in report.pseudo_labels.items())
    losses = " ".join(f"{k} {v:.4f}" for k, v in report.losses.items())
    left = report.seconds * (epochs - report.epoch)
    swapped = f" | {report.matched:.0f} pairs matched" if report.matched else ""
    return (f"{name} {report.epoch}/{epochs} | {losses} | {clusters}{swapped} | lr {report.lr:.2e} | "
            f"{report.images_per_second:.0f} images/s | {report.seconds:.1f} s, {left / 60:.0f} min left")


def _on_host(state):
    return {k: v.detach().cpu() for k, v in state.items()}


