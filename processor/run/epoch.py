"""The end of an epoch: numbers, a line, a test, checkpoints, and the state to resume from."""
import time

import numpy as np

from clustering.labels import collapse_warnings
from clustering.quality import diagnose, known_persons, link_numbers
from data.pseudo_labels import FILE_NAMES
from loss.links import linked_clusters
from processor.evaluate import metrics_record
from processor.run.events import memory_use
from utils.checkpoint import on_host
from utils.errors import UserError
from utils.finite import check_weights
from utils.modality import Modality

COLLAPSED_EPOCHS = 3        # in a row that end train_prepare.py
TOLD_EVERY = 5              # epochs between two of which the log tells, beside a stage's first and last
LONG = 30                   # seconds of an epoch of which it always tells


def end_epoch(stage, epoch, state, method, labels, centres, means, per_second, run, tester):
    """Log an epoch, test if that is due, save checkpoints, numbers and, last of all, the state.

    Args: stage: "prepare" or "finetune"; state: `TrainState`; method: `Method` after its last step; labels: Modality ->
        (N,), trained on; centres: Modality -> (K, D) tensor, mean features of its clusters at the epoch's start;
        means: `RunningMeans` of the steps; per_second: images of both modalities that the steps have trained on.
    Raises: NonFinite: a weight is not finite. UserError: the clusters of train_prepare.py have collapsed, or several
        processes disagree.
    """
    links, model, epochs = method.links(), state.model, state.settings.epochs
    check_weights(model.state_dict(), f"epoch {epoch}")     # before a checkpoint is replaced
    for buffer in model.buffers():      # running statistics, where each process has its own batch norm
        run.processes.same(buffer)
    run.processes.compare(f"epoch {epoch}", prototypes=method.prototypes(), weights=model.state_dict())
    state.labels, state.linked = labels, links and linked_clusters(links, labels, centres)
    sizes = {m.value: np.unique(of[of >= 0], return_counts=True)[1] for m, of in labels.items()}
    numbers = {"epoch": epoch, **means.means(), **{f"clusters_{name}": len(of) for name, of in sizes.items()},
               **{f"outliers_{m.value}": int((of < 0).sum()) for m, of in labels.items()},
               **{f"cluster_size_{name}_{what}": float(function(of)) for name, of in sizes.items()
                  for what, function in (("median", np.median), ("max", np.max))},
               **link_numbers(state.linked), **diagnose(labels, state.linked, known_persons(tester.data.train)),
               "lr": state.optimizer.param_groups[0]["lr"], "images_per_second": per_second,
               "seconds": time.perf_counter() - run.epoch_began, **memory_use(tester.device)}
    for line in [*epoch_lines(stage, numbers, epochs), *collapse_warnings(labels)]:
        run.log.info(line)
    best_is_wanted = method.best_epoch is not None and epoch < method.best_epoch
    due = tester.is_due(epoch, epochs) or best_is_wanted    # in every epoch: TEST.EVERY must not choose weights
    state.evaluation = tester(model) if due else None
    content = checkpoint(stage, epoch, model, state.evaluation, tester)
    run.record(stage, {f"cluster_size_{name}": of for name, of in sizes.items()}, **numbers,
               **({"test": content["metrics"]} if due else {}))
    if stage == "prepare" and not state.settings.allow_collapse:
        _refuse_collapse(run.history)
    if due:
        run.log.info(f"{stage} {epoch}/{epochs} | {_test_line(state.evaluation)}")
        if (rank1 := state.evaluation.mean()["rank1"]) > run.best:
            run.best = rank1
            run.save_model(stage, "best", {**content, "selected": "best Rank-1 on test data"})
            if best_is_wanted:
                state.best = on_host(model.state_dict())
    run.save_model(stage, "last", content)
    if stage == "prepare" and epoch == epochs:
        run.save_labels(labels, epoch, method.unifies(epoch))
    state.epoch += 1
    run.save_state(stage, state)
    if epoch == 1 < epochs:
        run.log.info(_estimate(stage, epochs, numbers, run))


def end_prompt_epoch(epoch, state, epochs, means, run):
    """Log an epoch of prompts and save its numbers and the state. Args: state: `PromptState`; means: `RunningMeans`."""
    lr, loss = state.optimizer.param_groups[0]["lr"], means.means()["loss"]
    seconds = time.perf_counter() - run.epoch_began
    if _is_told(epoch, epochs, seconds, 2 * TOLD_EVERY):
        run.log.info(f"prompt {epoch}/{epochs} | loss {loss:#.3g} | {_time(seconds, epochs - epoch)}")
    device = state.prompts[Modality.RGB].context.device
    run.record("prompt", epoch=epoch, loss=loss, lr=lr, seconds=seconds, **memory_use(device))
    state.epoch += 1
    run.save_state("prompt", state)


def finish_stage(stage, state, run, tester):
    """Write again what was lost since a stage was trained: labels, last checkpoint, and a test for the page.

    Args: state: `TrainState` after the last epoch, which is given `evaluation` where a page is to be written.
    """
    epoch, settings, model = state.epoch - 1, state.settings, run.model_file(stage, "last")
    labels = [run.labels_folder / name for name in FILE_NAMES.values()] if stage == "prepare" else []
    page = run.output_dir / "report.html", run.output_dir / "report_data" / f"{stage}.json"
    lost = run.processes.once(lambda: {path for path in (*labels, model, *page) if not path.is_file()})
    if not lost or state.evaluation is not None:
        return
    state.evaluation = tester(state.model)
    if lost.intersection(labels):
        run.save_labels(state.labels, epoch, settings.method(**settings.of_method).unifies(epoch))
    if model in lost:
        run.save_model(stage, "last", checkpoint(stage, epoch, state.model, state.evaluation, tester))
        run.written()


def _estimate(stage, epochs, numbers, run):
    """Say after a stage's first epoch what is left to do, and what the run takes."""
    run.written()
    disk = sum(path.stat().st_size for path in run.output_dir.glob("*.pth")) / 2**20
    gpu = f", {numbers['gpu_memory_gb']:.1f} GiB of the GPU's" if "gpu_memory_gb" in numbers else ""
    left = f"{duration(numbers['seconds'] * (epochs - 1))} left for {epochs - 1} epoch{'s' * (epochs > 2)}"
    return (f"{stage}: {left}, tests not counted; {numbers['memory_gb']:.1f} GiB of memory{gpu}; "
            f"{disk:,.0f} MiB on disk")


def checkpoint(stage, epoch, model, evaluation, tester):
    """Return the content of a checkpoint file."""
    metrics = {"metrics": metrics_record(evaluation, tester.data)} if evaluation else {}
    return {"stage": stage, "epoch": epoch, "state_dict": model.state_dict(), "model": model.describe(), **metrics}


def _refuse_collapse(history):
    """End a train_prepare.py that has stayed in one cluster for several epochs. Raises: UserError."""
    rows = history[-COLLAPSED_EPOCHS:]
    if len(rows) == COLLAPSED_EPOCHS and all(1 in (row["clusters_rgb"], row["clusters_ir"]) for row in rows):
        raise UserError(f"training has collapsed: in {len(rows)} epochs in a row, the last of them epoch "
                        f"{rows[-1]['epoch']}, all clustered images of a modality were in one cluster, and "
                        "train_clip.py must not learn from that; try a smaller CLUSTER.EPS or CLUSTER.K1 or a lower "
                        "OPTIM.LR with --fresh, or set PREPARE.ALLOW_COLLAPSE True")


def epoch_lines(stage, numbers, epochs):
    """Write what the log says of an epoch: losses and time; with every fifth clusters, links and, if known, how right.

    Args: numbers: as `end_epoch` records them. Returns: list of at most one text.
    """
    n, epoch = numbers, numbers["epoch"]
    if not _is_told(epoch, epochs, n["seconds"]):
        return []
    losses = " ".join(f"{name.removeprefix('loss_')} {value:#.3g}" for name, value in n.items()
                      if name.startswith("loss"))
    line = f"{stage} {epoch}/{epochs} | loss {losses} | {_time(n['seconds'], epochs - epoch)}"
    if not _is_told(epoch, epochs):
        return [line]
    parts = [f"clusters rgb {n['clusters_rgb']} ir {n['clusters_ir']}",
             f"outliers {n['outliers_rgb']} {n['outliers_ir']}"]
    if "links" in n:
        several = f" ({n['links_per_cluster']:.1f} per cluster)" if n["links_per_cluster_max"] > 1 else ""
        right = f", {100 * n['link_accuracy']:.0f} % right" if "link_accuracy" in n else ""
        parts.append(f"{n['links']} links{several}{right}")
    if "ari_rgb" in n:
        parts.append(f"ARI {n['ari_rgb']:.2f} {n['ari_ir']:.2f}")
    return [f"{line}\n    {' | '.join(parts)}"]


def _is_told(epoch, epochs, seconds=0.0, every=TOLD_EVERY):
    """Tell whether the log has a line of an epoch: those of a stage with many short ones would hide the rest."""
    return epoch in (1, epochs) or epoch % every == 0 or epochs <= 2 * TOLD_EVERY or seconds >= LONG


def _test_line(evaluation):
    """Write a test's results as one line, in percent."""
    mean = evaluation.mean()
    few = f", {mean['scored']:,} of {mean['queries']:,} queries scored" if mean["scored"] < mean["queries"] else ""
    return f"test {evaluation.mode}: " + " ".join(
        f"{name.replace('rank', 'Rank-')} {100 * mean[name]:.2f}" for name in ("rank1", "rank10", "mAP", "mINP")) + few


def _time(seconds, epochs):
    """Write an epoch's time, and that of the epochs left."""
    return duration(seconds) + (f", {duration(seconds * epochs)} left" if epochs else "")


def duration(seconds):
    """Write seconds as a person would: "0.4 s", "28 s", "5 min", "2.3 h"."""
    return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s" if seconds < 120 else (
        f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h")
