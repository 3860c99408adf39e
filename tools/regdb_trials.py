"""Train and test RegDB's ten trials, and put their results into one table.

    python tools/regdb_trials.py train [--trials 1 2 3] [--config_file configs/regdb.yml] [KEY VALUE ...]
    python tools/regdb_trials.py table [--trials 1 2 3] [--config_file configs/regdb.yml] [KEY VALUE ...]

`train` runs train_prepare.py, train_clip.py and test.py (both directions) for one trial after the other; what is
finished is skipped, so a run that was cut short resumes when the command is repeated. `table` gives mean ± standard
deviation over the trials that were tested, names the missing ones, and writes trials.json beside their folders.
"""
import json
import sys
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))     # the tool lies one folder below the imports

from configs.defaults import as_dict, flat, load_config  # noqa: E402
from processor.evaluate import RANKS  # noqa: E402
from processor.pseudo_labels import FILE_NAMES  # noqa: E402
from utils.checkpoint import load_checkpoint, save_json  # noqa: E402
from utils.errors import Parser, UserError, exit_on_user_error  # noqa: E402
from utils.processes import run_script  # noqa: E402

TRIALS = tuple(range(1, 11))
NUMBERS = (*(f"rank{r}" for r in RANKS), "mAP", "mINP")
# What learning does not depend on.
NO_TRAINING = ("OUTPUT_DIR", "DEVICE", "DATASET.CACHE_DIR", "DATASET.CACHE", "CHECKPOINT", "TEST")


def parse_arguments(arguments=None):
    """Read the command line: (options, overrides). Raises UserError: it is not understood."""
    parser = Parser(__doc__)
    parser.add_argument("action", choices=("train", "table"))
    parser.add_argument("--trials", nargs="+", default=[str(t) for t in TRIALS], help="default: 1 to 10")
    parser.add_argument("--config_file", default=str(REPOSITORY / "configs" / "regdb.yml"),
                        help="default: configs/regdb.yml")
    options, overrides = parser.parse_known_args(arguments)
    strange = [word for word in overrides if word.startswith("--")]
    if strange:
        parser.error(f"unknown option {strange[0]}")
    # --trials is greedy: from the first word that is no number on, its words are KEY VALUE pairs
    numbers = next((i for i, word in enumerate(options.trials) if not word.isdigit()), len(options.trials))
    overrides = options.trials[numbers:] + overrides
    options.trials = sorted({int(word) for word in options.trials[:numbers]})
    if not options.trials or not set(options.trials) <= set(TRIALS):
        raise UserError(f"--trials are {options.trials}; expected some of {TRIALS[0]} to {TRIALS[-1]}")
    return options, overrides


def trial_configs(trials, config_file, overrides):
    """Read the configuration of each trial: {trial: configuration}.

    Raises: UserError: two trials would write to the same OUTPUT_DIR.
    """
    configs = {t: load_config(config_file, [*overrides, "DATASET.TRIAL", str(t)]) for t in trials}
    if len({config.OUTPUT_DIR for config in configs.values()}) < len(trials):
        raise UserError(f"OUTPUT_DIR is {configs[trials[0]].OUTPUT_DIR} for every trial; expected {{trial}} in it, as "
                        "in runs/regdb/trial{trial}")
    return configs


def train(configs, config_file, overrides):
    """Run what is unfinished of every trial, one script after the other. Raises UserError: a script failed."""
    for trial, config in configs.items():
        settings = ["--config_file", config_file, *overrides, "DATASET.TRIAL", str(trial)]
        checkpoint = str(Path(config.OUTPUT_DIR) / "model_last.pth")
        stages = (("train_prepare.py", prepare_is_finished, settings),
                  ("train_clip.py", clip_is_finished, settings),
                  ("test.py", test_is_finished, ["--resume_path", checkpoint, *settings, "TEST.MODE", "both"]))
        was_run = False                     # what follows a stage that ran is out of date
        for script, is_finished, arguments in stages:
            if not was_run and is_finished(config):
                print(f"trial {trial}: {script} is finished", flush=True)
                continue
            print(f"trial {trial}: {script} starts", flush=True)
            code = run_script([sys.executable, str(REPOSITORY / script), *arguments])
            if code > 128:
                sys.exit(code)          # a signal; the script has said that it can be resumed
            if code:
                raise UserError(f"{script} of trial {trial} ended with exit code {code}; its message is above and in "
                                f"{Path(config.OUTPUT_DIR) / 'log.txt'}. Run the same command again to resume")
            was_run = True


def prepare_is_finished(config):
    """Tell whether train_prepare.py ran to its last epoch and left its pseudo labels."""
    folder = Path(config.OUTPUT_DIR)
    return (_reached(config, "prepare_last.pth", config.PREPARE.EPOCHS)
            and all((folder / "pseudo_labels" / name).is_file() for name in FILE_NAMES.values()))


def clip_is_finished(config):
    """Tell whether train_clip.py ran to its last epoch."""
    return _reached(config, "model_last.pth", config.FINETUNE.EPOCHS)


def test_is_finished(config):
    """Tell whether both directions of the last checkpoint were tested."""
    checkpoint, metrics = Path(config.OUTPUT_DIR) / "model_last.pth", results_file(config)
    return (metrics.is_file() and metrics.stat().st_mtime >= checkpoint.stat().st_mtime
            and len(_read_results(metrics)) > 1)


def results_file(config):
    """Return the path of the results of both directions that test.py writes for the last checkpoint."""
    return Path(config.OUTPUT_DIR) / "tests" / f"model_last-{config.TEST.PROTOCOL}-both" / "metrics.json"


def _reached(config, name, epochs):
    """Tell whether a checkpoint is of the last epoch. Raises UserError: it was trained with other settings."""
    path = Path(config.OUTPUT_DIR) / name
    if not path.is_file():
        return False
    content = load_checkpoint(path)
    wanted, found = (_learned_with(tree) for tree in (as_dict(config), content.get("config", {})))
    other = sorted(key for key in wanted.keys() & found.keys() if wanted[key] != found[key])
    if other:
        raise UserError(f"{path} was trained with {other[0]} {found[other[0]]}, not {wanted[other[0]]}"
                        f"{f' ({len(other)} settings differ)' if len(other) > 1 else ''}; give the same settings, or "
                        "another OUTPUT_DIR, or delete the folder")
    return content.get("epoch") == epochs


def _learned_with(tree):
    """Select the settings that change what is learned: {"SECTION.KEY": value}."""
    return {key: value for key, value in flat(tree).items()
            if key not in NO_TRAINING and key.split(".")[0] not in NO_TRAINING}


def _read_results(path):
    """Read the records of a metrics.json, one per direction. Raises UserError: it is damaged."""
    try:
        record = json.loads(path.read_text())
        results = record.get("results", [record])
        return [{**result, **{name: float(result[name]) for name in NUMBERS}} for result in results]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {error}); expected what test.py writes. "
                        "Delete it and test again")


def collect(configs):
    """Collect the results by direction: ({protocol: {trial: record}}, trials without results).

    Raises: UserError: a metrics.json is of another trial.
    """
    directions, missing = {}, []
    for trial, config in configs.items():
        path = results_file(config)
        if not path.is_file():
            missing.append(trial)
            continue
        for record in _read_results(path):
            if record.get("dataset_trial", trial) != trial:
                raise UserError(f"{path} holds results of trial {record['dataset_trial']}; expected trial {trial}. "
                                "Test the trial again")
            protocol = str(record["protocol"]).replace(f" trial {trial}", "")
            directions.setdefault(protocol, {})[trial] = record
    return directions, missing


def summarise(directions):
    """Average over the trials: {protocol: {"trials", "mean": {...}, "std": {...}}}.

    std is that of the sample (n - 1), 0 for a single trial.
    """
    summary = {}
    for protocol, records in directions.items():
        values = {name: np.array([record[name] for record in records.values()]) for name in NUMBERS}
        summary[protocol] = {"trials": sorted(records), "mean": {n: float(v.mean()) for n, v in values.items()},
                             "std": {n: float(v.std(ddof=1)) if len(v) > 1 else 0.0 for n, v in values.items()}}
    return summary


def print_table(summary, missing):
    """Print mean ± standard deviation in percent, one line per direction, and the missing trials."""
    width = max(len(protocol) for protocol in summary)
    print(f"{'':<{width}}  trials" + "".join(f"{n.replace('rank', 'Rank-'):>16}" for n in NUMBERS))
    for protocol, row in summary.items():
        cells = "".join(f"{100 * row['mean'][n]:8.2f} ± {100 * row['std'][n]:5.2f}" for n in NUMBERS)
        print(f"{protocol:<{width}}  {len(row['trials']):>6}{cells}")
    print(f"missing: trials {', '.join(map(str, missing))}" if missing else "no trial is missing")


def main(arguments=None):
    """Train the trials, or print their table."""
    options, overrides = parse_arguments(arguments)
    configs = trial_configs(options.trials, options.config_file, overrides)
    if options.action == "train":
        train(configs, options.config_file, overrides)
    directions, missing = collect(configs)
    if not directions:
        folders = ", ".join(config.OUTPUT_DIR for config in configs.values())
        raise UserError(f"no metrics.json was found in {folders}; run the same command with train in place of table")
    summary = summarise(directions)
    print_table(summary, missing)
    output = Path(configs[options.trials[0]].OUTPUT_DIR).parent / "trials.json"
    save_json(output, {"directions": summary, "missing": missing})
    print(f"written to {output}")


if __name__ == "__main__":
    exit_on_user_error(main)
