"""Test a checkpoint: Rank-k, mAP and mINP, printed and written to tests/CHECKPOINT-PROTOCOL-MODE-IDENTITY/ beside it.

    python test.py --resume_path runs/sysu/model_last.pth [--config_file ...] [KEY VALUE ...]

Settings are those of the checkpoint unless a file or KEY VALUE pairs change them. Released checkpoints are
recognised by their keys. TEST.MODE both tests every mode of the data set. Without --resume_path the untrained network
is tested, with results in OUTPUT_DIR. The page of the run that a checkpoint lies in is written anew; for its comparison
the untrained network is tested first, where that was not done in the same way before.
"""
from pathlib import Path

from configs.command_line import parse_arguments
from utils.errors import UserError, exit_on_user_error


def main():
    """Run the test that the command line describes."""
    arguments = parse_arguments(
        __doc__, resume_path="checkpoint of train_prepare.py or train_clip.py, or a released one",
        switches={"allow_other_data": "test on another data set or trial than the checkpoint was trained on",
                  "save_ranking": "write the ranked lists as CSV and the features as .npz"})
    import torch  # slow: after the command line was read

    from configs.checkpoint import read_checkpoint, settings_of
    from configs.defaults import load_config
    from configs.identity import results_folder
    from model.published import local_path
    from model.released import describe_released, model_from_checkpoint, released_state
    from processor.ranking import save_rankings
    from processor.setup import Setup
    from report.content import retrieval_content
    from report.lists import baseline_lists
    from report.write import save_report
    from utils.checkpoint import file_digest

    path = arguments.resume_path
    content = read_checkpoint(path) if path else {}
    base = settings_of(content)
    config = load_config(arguments.config_file, arguments.overrides, base=base)
    now = config.INPUT.NORMALISATION
    trained = base.get("INPUT.NORMALISATION", now)
    if trained != now:
        raise UserError(f"checkpoint {path} was trained with INPUT.NORMALISATION {trained}, now it is {now}. Use the "
                        "configuration of the training run")
    setup = Setup(config, "test")
    if content and not arguments.allow_other_data:
        check_same_data(content, path, setup.facts())
    if path:
        model = model_from_checkpoint(content, path, config.INPUT.HEIGHT, config.INPUT.WIDTH, config.MODEL.STRIDE,
                                      config.MODEL.TOWER, config.MODEL.ACTIVATION)
        model = model.to(setup.device, memory_format=torch.channels_last)
    else:
        model = setup.new_model()
    banks, mode = setup.banks("test"), config.TEST.MODE or setup.data.modes[0]
    tested = setup.identity(file_digest(local_path(path)) if path else setup.weights, mode)
    folder = results_folder(config.OUTPUT_DIR, path, tested)
    with setup.holding(folder):
        log, run = setup.start(folder), folder.parents[1]
        if released_state(content) is not None:
            log.info(f"{path}: {describe_released(content)}")
        if path and setup.processes.size == 1 and (run / "metrics.jsonl").is_file():
            test_untrained(setup, banks, run, tested, log)
        evaluations, rankings = test(setup, model, banks, folder, log, tested, path or model.tower.untrained, content)
        if not setup.processes.writes:
            return
        if arguments.save_ranking:
            for file in save_rankings(folder, setup.data, setup.retrievals, evaluations):
                log.info(f"written to {file}")
        save_report(folder, log, "test", lambda: retrieval_content(setup.data, banks, rankings, baseline_lists(folder)),
                    run)


def check_same_data(content, path, facts):
    """Refuse a test on other data than the checkpoint's: its training persons could be among the test persons.

    Args: facts: what a checkpoint of this configuration would remember, {"dataset", "trial", "manifest"}.
    Raises: UserError: the checkpoint remembers another data set or trial, or other images.
    """
    from data.manifest import manifest_differences

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


def test_untrained(setup, banks, run_folder, tested, log):
    """Test the network that a run began with, for the run's page, unless that was done or its weights are elsewhere.

    Args: tested: `identity` of the test of the run's checkpoint.
    """
    from configs.identity import results_folder
    from report.run_files import read_run

    try:
        run = read_run(run_folder)
        if not run.lacks_baseline(tested, {retrieval.mode for retrieval in setup.retrievals}):
            return
        log.info(f"the untrained network is tested first, for the page of {run_folder}")
        model = setup.new_model()
        if setup.weights != run.known("weights"):
            raise UserError(f"MODEL.CLIP_WEIGHTS {setup.config.MODEL.CLIP_WEIGHTS} are not what the run began with")
        tested = setup.identity(setup.weights, tested["mode"])
        test(setup, model, banks, results_folder(run_folder, "", tested), log, tested, model.tower.untrained, {})
    except UserError as error:
        log.info(f"the page of {run_folder} lacks the untrained network: {error}")


def test(setup, model, banks, folder, log, tested, what, content):
    """Test a model in the configuration's modes; print and write the results, and what comparisons need of each query.

    Args: tested: `identity` of the test; what: is tested; content: of its checkpoint.
    Returns: list of `Evaluation`, list of `Ranking` of the first trial of each; () in a process that does not write.
    """
    from model.released import first_number, released_state
    from processor.evaluate import evaluate, format_table, metrics_record, rank_trial
    from processor.ranking import save_per_query
    from report.lists import save_nearest
    from utils.checkpoint import save_json

    evaluations = evaluate(model, setup.data, banks, setup.retrievals, setup.config.TEST.BATCH_SIZE,
                           setup.config.PRECISION, setup.processes, setup.config.TEST.MIRRORED)
    if not setup.processes.writes:
        return evaluations, ()
    for evaluation in evaluations:
        log.info(f"{what}: {evaluation.protocol}, mean of {len(evaluation.trials)} trials\n"
                 + format_table([{"what": Path(what).name, **evaluation.mean()}]))
    if not content:
        selection = "no training"
    elif released_state(content) is not None:
        selection = "as released"
    else:
        selection = content.get("selected", "last epoch")
    facts = {"checkpoint": what, "epoch": int(first_number(content.get("epoch")) or 0), "selection": selection}
    results = [metrics_record(evaluation, setup.data, identity=setup.identity(tested["checkpoint"], evaluation.mode),
                              **facts) for evaluation in evaluations]
    save_json(folder / "metrics.json", {**results[0], "results": results} if len(results) > 1 else results[0])
    save_per_query(folder, evaluations)
    rankings = [rank_trial(setup.data, *pair) for pair in zip(setup.retrievals, evaluations)]
    save_nearest(folder, rankings)
    save_json(folder / "report_data" / "run-test.json", setup.about())
    log.info(f"written to {folder / 'metrics.json'}")
    return evaluations, rankings


if __name__ == "__main__":
    exit_on_user_error(main)
