"""The end of an epoch and of a stage: numbers, a line, a test, checkpoints, the page."""
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from clustering.quality import diagnose, known_persons, link_numbers, with_images
from data.pseudo_labels import collapse_warnings
from processor.evaluate import format_table, metrics_record
from processor.run.events import memory_use
from report.content import stage_content
from tools.lib.cost import StageCost, count_tests
from utils.errors import UserError
from utils.modality import Modality

COLLAPSED_EPOCHS = 3        # in a row that end train_prepare.py
LINE = 140                  # characters of a log's line, behind its date


@dataclass
class LastEpoch:
    """What is kept of the last finished epoch, for the page and the pseudo labels."""

    labels: dict            # Modality -> (N,) int64 clusters
    pairs: tuple            # a row per link at its end: RGB clusters (M,), IR clusters (M,), similarity (M,)
    collapsed: int          # epochs in a row, with it, in which a modality was in one cluster
    evaluation: object = None       # `Evaluation` of its test, if there was one; not saved

    def state_dict(self):
        """Return it as tensors and numbers."""
        return {"collapsed": self.collapsed,
                "labels": {m.value: torch.from_numpy(self.labels[m]) for m in Modality},
                "pairs": [torch.from_numpy(values) for values in self.pairs]}

    @classmethod
    def from_state_dict(cls, state):
        """Make it from a saved state."""
        return cls({m: state["labels"][m.value].cpu().numpy() for m in Modality},
                   tuple(values.cpu().numpy() for values in state["pairs"]), state["collapsed"])


def end_of_epoch(stage, epoch, state, epochs, lr, images, run, tester, extra):
    """Log an epoch, test if that is due, save checkpoints, numbers and state.

    Args: state: `TrainState`; epochs: of the stage; lr: learning rate of the epoch; images: trained on in all its
        steps; extra: further entries of the checkpoints.
    """
    now, started = state.under_way, state.clock.seconds()
    pairs, persons = with_images(now.memory.pairs(), now.labels), known_persons(tester.data.train)
    numbers = {**epoch_numbers(epoch, now, lr, images, state.clock.seconds()), **link_numbers(pairs),
               **diagnose(now.labels, pairs, persons), **memory_use(tester.device)}
    for line in epoch_lines(stage, numbers, epochs):
        run.log.info(line)
    for warning in collapse_warnings(now.labels):
        run.log.info(warning)
    collapsed = any(labels.max() == 0 for labels in now.labels.values())
    last = LastEpoch(now.labels, pairs, (state.last.collapsed if state.last else 0) + 1 if collapsed else 0)
    if tester.is_due(epoch, epochs):
        last.evaluation = tester(state.model)
        run.log.info(f"epoch {epoch}, {last.evaluation.protocol}\n"
                     + format_table([{"what": stage, **last.evaluation.mean()}]))
    content = _checkpoint(stage, epoch, state, last, tester, extra)
    if last.evaluation and run.is_best(last.evaluation.mean()["rank1"]):
        run.save_model(stage, "best", {**content, "selected": "best Rank-1 on test data"})
    run.save_model(stage, "last", content)
    run.record(stage, cluster_sizes(now.labels), **numbers,
               **({"test": content["metrics"]} if last.evaluation else {}))
    spent = state.clock.seconds()
    state.close_epoch(last)
    if stage == "prepare" and epoch == epochs and not is_refused(last, state.settings):
        run.save_labels(last.labels)
    run.save_state(stage, state.state_dict())
    if epoch == 1:
        run.log.info(_estimate(stage, now, epochs, started, spent + state.clock.seconds() - started, run, tester))
    refuse_collapse(last, epoch, state.settings)


def _estimate(stage, now, epochs, seconds, end_seconds, run, tester):
    """Estimate a stage from its first epoch, in a line; a test embeds its images as fast as the epoch did all.

    Args: now: `UnderWay`; seconds: of the epoch; end_seconds: of its end, saving included.
    """
    images = sum(map(len, tester.banks.values())) / sum(map(len, now.labels.values()))
    files = [run.model_file(stage, "last"), run.state_file.path]
    peak = memory_use(tester.device)
    return StageCost(stage, epochs, seconds + end_seconds, count_tests(epochs, tester.every),
                     now.setup_seconds * images, host_gb=peak["memory_gb"], gpu_gb=peak.get("gpu_memory_gb", 0.0),
                     disk_gb=2 * sum(path.stat().st_size for path in files if path.is_file()) / 2**30).line()


def is_refused(last, settings):
    """Tell whether a run has stayed in one cluster for longer than its settings allow."""
    return last.collapsed >= COLLAPSED_EPOCHS and not settings.allow_collapse


def refuse_collapse(last, epoch, settings):
    """End a run that has stayed in one cluster for several epochs.

    Args: last: `LastEpoch`; epoch: its number; settings: `TrainSettings`. Raises: UserError.
    """
    if is_refused(last, settings):
        raise UserError(f"training has collapsed: in {last.collapsed} epochs in a row, the last of them epoch {epoch}, "
                        "all clustered images of a modality were in one cluster, and train_clip.py must not learn from "
                        "that; try a smaller CLUSTER.EPS or CLUSTER.K1 or a lower OPTIM.LR with --fresh, or set "
                        "PREPARE.ALLOW_COLLAPSE True")


def finish_stage(stage, state, epochs, run, tester, train_images, extra):
    """Write the page of a finished stage, and again what was lost since: labels, last checkpoint, page."""
    last, trained_now = state.last, state.last.evaluation is not None
    refuse_collapse(last, epochs, state.settings)
    if stage == "prepare" and not run.has_labels():
        run.save_labels(last.labels)
    lost, has_page = run.processes.once(lambda: (not run.model_file(stage, "last").is_file(), run.has_page(stage)))
    if not trained_now and not lost and has_page:
        return
    last.evaluation = last.evaluation or tester(state.model)
    if lost:
        run.save_model(stage, "last", _checkpoint(stage, epochs, state, last, tester, extra))
    run.save_page(stage, partial(stage_content, stage, tester.data, tester.banks, tester.retrieval, last.evaluation,
                                 train_images, last.labels, last.pairs, known_persons(tester.data.train)))


def _checkpoint(stage, epoch, state, last, tester, extra):
    """The content of a checkpoint file."""
    metrics = {"metrics": metrics_record(last.evaluation, tester.data)} if last.evaluation else {}
    return {"stage": stage, "epoch": epoch, "state_dict": state.model.state_dict(),
            "model": state.model.describe(), **(extra or {}), **metrics}


def epoch_numbers(epoch, under_way, lr, images, seconds):
    """Put an epoch into plain numbers, for metrics.jsonl.

    Args: under_way: `UnderWay` after its last step; images: trained on in all its steps; seconds: all of the epoch.
    """
    labels, means = under_way.labels, under_way.means.means()
    matched, similarity = means.pop("matched", 0.0), means.pop("matched_similarity", 0.0)
    clusters = {f"clusters_{m.value}": len(np.unique(values[values >= 0])) for m, values in labels.items()}
    outliers = {f"outliers_{m.value}": int((values < 0).sum()) for m, values in labels.items()}
    sizes = {f"{name}_{what}": float(function(values)) for name, values in cluster_sizes(labels).items()
             for what, function in (("median", np.median), ("max", np.max))}
    return {"epoch": epoch, **means, **clusters, **outliers, **sizes, "lr": lr, "matched": matched,
            "matched_similarity": similarity, "images_per_second": images / (seconds - under_way.setup_seconds),
            "seconds": seconds}


def cluster_sizes(labels):
    """Count the images of each cluster that has any: {"cluster_size_rgb": (K,), "cluster_size_ir": (K,)}."""
    return {f"cluster_size_{m.value}": np.unique(values[values >= 0], return_counts=True)[1]
            for m, values in labels.items()}


def epoch_lines(stage, numbers, epochs):
    """Write the lines about an epoch: training; clusters and, where identities are known, their diagnosis.

    Args: numbers: of `epoch_numbers`, and the diagnosis. Returns: lines that begin with stage and epoch.
    """
    n, head = numbers, f"{stage} {numbers['epoch']}/{epochs}"
    losses = " ".join(f"{name.removeprefix('loss_')} {value:.4f}" for name, value in n.items()
                      if name.startswith("loss"))
    left = n["seconds"] * (epochs - n["epoch"])
    clusters = ", ".join(f"{m.value} {n[f'clusters_{m.value}']} ({n[f'outliers_{m.value}']} outliers)"
                         for m in Modality)
    one_to_one = n.get("links_per_cluster_max", 0) <= 1
    count = n["matched"] or n.get("links", 0)       # pgm and rpnr match nothing in a step
    linked = f", {count:.0f} pairs" if count and one_to_one else ""
    if not one_to_one:
        linked = f", {n['links']} links, {n['links_per_cluster']:.1f} per cluster"
    diagnosis = [f"diagnosis (known ids): ARI {n['ari_rgb']:.2f} {n['ari_ir']:.2f}, "
                 f"{'pairs' if one_to_one else 'links'} "
                 f"{100 * n['matching_accuracy']:.0f} % right"] if "ari_rgb" in n else []
    return [*_lines(head, f"loss {losses}", f"lr {n['lr']:.1e}", f"{n['images_per_second']:.0f} images/s",
                    f"{n['seconds']:.1f} s, {left / 60:.0f} min left"),
            *_lines(head, f"clusters {clusters}{linked}", *diagnosis)]


def _lines(head, *parts):
    """Join parts to lines with a head each, no longer than LINE where a part alone is not."""
    lines = []
    for part in parts:
        if lines and len(lines[-1]) + len(part) <= LINE - len(" | "):
            lines[-1] += f" | {part}"
        else:
            lines.append(f"{head} | {part}")
    return lines


def on_host(state):
    """Copy a state dict's tensors to the host, at any depth."""
    if isinstance(state, torch.Tensor):
        return state.detach().cpu().clone()
    if isinstance(state, dict):
        return {k: on_host(v) for k, v in state.items()}
    return [on_host(v) for v in state] if isinstance(state, list) else state
