"""Test a checkpoint: Rank-k, mAP and mINP, printed and written to OUTPUT_DIR/metrics.json.

    python test.py --resume_path runs/sysu/model_last.pth [--config_file ...] [KEY VALUE ...]

Settings are those of the checkpoint unless a file or KEY VALUE pairs change them. Released checkpoints are
recognised by their keys. TEST.MODE both tests every mode of the data set. Without --resume_path CLIP is tested as
it is.
"""
from functools import partial
from pathlib import Path

from configs.build import Parts, parse_arguments
from configs.defaults import load_config
from data.manifest import manifest_differences
from model.cclnet import CCLNet
from model.checkpoint import model_from_checkpoint
from model.clip import load_clip
from model.released import describe_released, released_input_size
from processor.evaluate import evaluate_all, format_table, metrics_record
from processor.finite import non_finite_report
from utils.checkpoint import load_checkpoint, released_state, save_json
from utils.errors import UserError, exit_on_user_error
from utils.report.content import retrieval_content
from utils.report.ranking import save_rankings
from utils.report.write import save_report


def main():
    """Run the test that the command line describes."""
    arguments = parse_arguments(
        __doc__, resume_path="checkpoint of train_prepare.py or train_clip.py, or a released one",
        switches={"allow_other_data": "test on another data set or trial than the checkpoint was trained on",
                  "save_ranking": "write the ranked lists as CSV and the features as .npz"})
    path = arguments.resume_path
    content = load_checkpoint(path) if path else {}
    config = load_config(arguments.config_file, arguments.overrides, base=_settings(content))
    size = config.INPUT.HEIGHT, config.INPUT.WIDTH
    parts = Parts(config, "test")
    if not arguments.allow_other_data:
        check_same_data(content, path, parts.facts())
    if path:
        model, what = model_from_checkpoint(content, path, *size), path
    else:
        model, what = CCLNet(load_clip(config.MODEL.CLIP_WEIGHTS).visual, *size).eval(), "CLIP as it is"
    banks = parts.banks("test")
    parts.start()
    if released_state(content) is not None:
        parts.log.info(f"{path}: {describe_released(content)}")
    with non_finite_report(config.OUTPUT_DIR):
        evaluations = evaluate_all(parts.place(model), parts.data, banks, parts.retrievals, config.TEST.BATCH_SIZE,
                                   config.PRECISION)
    report(parts, content, what, evaluations)
    if arguments.save_ranking:
        for file in save_rankings(config.OUTPUT_DIR, parts.data, parts.retrievals, evaluations):
            parts.log.info(f"written to {file}")
    save_report(config.OUTPUT_DIR, parts.log, "test",
                partial(retrieval_content, "test", parts.data, banks, parts.retrievals, evaluations))


def _settings(content):
    """The configuration in a checkpoint; of a released one the size of the images."""
    released = released_state(content)
    size = released_input_size(released) if released else None
    return {"INPUT": dict(zip(("HEIGHT", "WIDTH"), size))} if size else content.get("config")


def check_same_data(content, path, facts):
    """Refuse a test on other data than the checkpoint's: its training persons could be among the test persons.

    Args: facts: what a checkpoint of this configuration would remember, {"dataset", "trial", "manifest"}.
    Raises: UserError: the checkpoint remembers another data set or trial, or other images.
    """
    dataset, trial = facts["dataset"], facts["trial"]
    trained = content.get("dataset", dataset), content.get("trial", trial)
    if trained != (dataset, trial):
        raise UserError(f"checkpoint {path} was trained on {trained[0]} trial {trained[1]}, not on {dataset} trial "
                        f"{trial}, whose test persons it may have seen in training; set DATASET.NAME, DATASET.ROOT and "
                        "DATASET.TRIAL to its own, or add --allow_other_data to test across data on purpose")
    differences = manifest_differences(facts["manifest"], content.get("manifest", facts["manifest"]))
    if differences:
        raise UserError(f"checkpoint {path} was trained on another copy of {dataset}: here are "
                        f"{'; '.join(differences)}. Set DATASET.ROOT to the images of the training run, or add "
                        "--allow_other_data to test across data on purpose")


def report(parts, content, what, evaluations):
    """Print the results (list of `Evaluation`) and write metrics.json."""
    for evaluation in evaluations:
        parts.log.info(f"{what}: {evaluation.protocol}, mean of {len(evaluation.trials)} trials\n"
                       + format_table([{"what": Path(what).name, **evaluation.mean()}]))
    selection = content.get("selected", "last epoch")
    if released_state(content) is not None:
        selection = "as released"
    facts = {"dataset_trial": parts.facts()["trial"], "checkpoint": what, "epoch": int(content.get("epoch", 0)),
             "selection": selection if content else "no training"}
    results = [metrics_record(evaluation, parts.data, **facts) for evaluation in evaluations]
    output = Path(parts.config.OUTPUT_DIR) / "metrics.json"
    save_json(output, {**results[0], "results": results} if len(results) > 1 else results[0])
    parts.log.info(f"written to {output}")


if __name__ == "__main__":
    exit_on_user_error(main)
