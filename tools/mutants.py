"""Break the method's core line by line with cosmic-ray, and count which breaks the tests notice.

    python tools/mutants.py [--only loss/cluster_memory.py ...] [--sample 0.3] [--jobs 2] [--output FILE.md]

Every file is broken in a copy of the repository, one small change at a time (another operator, number, comparison or
branch), and the tests named for it here are run. Prints a table of killed and survived changes per file, and each
survivor. Hours for all of it: `make mutants` runs it; it is no part of `make test`.
"""
import json
import random
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))     # the tool lies one folder below the imports

from utils.errors import Parser, UserError, exit_on_user_error  # noqa: E402

FUNCTIONS, LOOP = "test_golden_functions", "test_train test_golden_schedule test_golden_model"
NOTICES = "test_training_notices test_settings_reach test_streams test_defaults"
# file -> the tests that must notice, those that fail first in front
TESTS = {
    "loss/cluster_memory.py": f"test_memory {FUNCTIONS}",
    "loss/association.py": f"test_memory {FUNCTIONS}",
    "loss/cross_memory.py": f"test_memory {FUNCTIONS} test_golden_model",
    "loss/cclnet.py": f"test_memory {FUNCTIONS} test_golden_model",
    "loss/pgm.py": "test_golden_methods test_methods",
    "loss/rpnr.py": "test_golden_methods test_methods",
    "loss/calibration.py": "test_golden_methods test_methods",
    "loss/image_text.py": FUNCTIONS,
    "processor/guidance.py": "test_train test_golden_model",
    "processor/train.py": f"test_batches {LOOP} {NOTICES}",
    "processor/prompt.py": f"{LOOP} {NOTICES} test_batches",
    "processor/features.py": f"test_train {NOTICES}",
    "processor/pseudo_labels.py": f"test_train {NOTICES} test_bad_input",
    "model/prompt.py": f"test_golden_model {NOTICES}",
    "data/sampler.py": "test_batches test_properties test_streams",
    "data/augment.py": "test_batches test_augment",
    "utils/optim.py": FUNCTIONS,
    "utils/seeding.py": "test_streams test_batches",
    "utils/clustering.py": f"{FUNCTIONS} test_clustering test_properties",
    "utils/metrics.py": f"{FUNCTIONS} test_metrics test_properties",
    "processor/setup.py": f"{NOTICES} test_golden_model",
}
# An arithmetic operator becomes its opposite, a comparison its neighbours; others only give type errors.
OPPOSITES = ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Div", "Mod_Mul", "Pow_Mul", "BitAnd_BitOr",
             "BitOr_BitAnd")
EXCLUDED = [rf"core/ReplaceBinaryOperator_(?!({'|'.join(OPPOSITES)})$)",
            r"core/ReplaceComparisonOperator_(Is|IsNot|\w+_Is|\w+_IsNot)", r"core/ReplaceUnaryOperator_\w+_Invert",
            r"core/ReplaceComparisonOperator_(Lt_(Eq|NotEq|GtE)|LtE_(Eq|NotEq|Gt)|Gt_(Eq|NotEq|LtE)|GtE_(Eq|NotEq|Lt))",
            r"core/ReplaceComparisonOperator_(Eq|NotEq)_(Lt|Gt)E?$", "core/ExceptionReplacer"]
CONFIG = """[cosmic-ray]
module-path = ["{file}"]
timeout = {timeout}
excluded-modules = []
test-command = "{command}"
[cosmic-ray.distributor]
name = "local"
[cosmic-ray.filters.operators-filter]
exclude-operators = {excluded}
"""


def main():
    """Break the files that the command line names. Raises UserError: a name is unknown, or cosmic-ray is missing."""
    parser = Parser(__doc__)
    parser.add_argument("--only", nargs="+", default=list(TESTS), help="files; default: all of the core")
    parser.add_argument("--sample", type=float, default=1.0, help="share of the changes of each file that are tried")
    parser.add_argument("--jobs", type=int, default=1, help="files at a time")
    parser.add_argument("--timeout", type=int, default=300, help="seconds for the tests of one change")
    parser.add_argument("--output", help="write the table there too, in Markdown")
    options = parser.parse_args()
    unknown = [file for file in options.only if file not in TESTS]
    if unknown:
        raise UserError(f"--only names {unknown[0]}; choose {', '.join(TESTS)}")
    if not shutil.which("cosmic-ray", path=str(Path(sys.executable).parent)):
        raise UserError("cosmic-ray is not installed beside this Python; run `make mutants`, or pip install cosmic-ray")
    with ThreadPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(lambda file: mutate(file, options.sample, options.timeout), options.only))
    text = table(rows)
    print(text)
    if options.output:
        Path(options.output).write_text(text)


def mutate(file, sample, timeout):
    """Try the changes of one file in a copy of the repository: (file, killed, left out, survivors)."""
    with tempfile.TemporaryDirectory() as folder:
        copy, session = Path(folder) / "copy", Path(folder) / "session.sqlite"
        subprocess.run(["git", "clone", "-q", ROOT, copy], check=True)
        tests = " ".join(f"tests/{name}.py" for name in TESTS[file].split())
        config = Path(folder) / "cosmic.toml"
        config.write_text(CONFIG.format(file=file, timeout=timeout, excluded=json.dumps(EXCLUDED),
                                        command=f"{sys.executable} -m pytest -x -q -p no:cacheprovider {tests}"))
        for command in (["cosmic-ray", "init", config, session], ["cr-filter-operators", session, config]):
            _run(command, copy)
        left_out = _leave_out(session, sample)
        _run(["cosmic-ray", "exec", config, session], copy)
        return file, *_results(session), left_out


def _run(command, folder):
    command = [str(Path(sys.executable).parent / command[0]), *map(str, command[1:])]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def _leave_out(session, sample):
    """Mark all but a share of the changes as skipped, drawn the same in every run: how many were left out."""
    from cosmic_ray.work_db import WorkDB, use_db
    from cosmic_ray.work_item import WorkerOutcome, WorkResult

    with use_db(str(session), WorkDB.Mode.open) as work:
        items = sorted(work.pending_work_items, key=lambda item: str(item.mutations))
        skipped = random.Random(0).sample(items, round(len(items) * (1 - sample)))
        for item in skipped:
            work.set_result(item.job_id, WorkResult(worker_outcome=WorkerOutcome.SKIPPED))
    return len(skipped)


def _results(session):
    """Read a finished session: the number of killed changes, and the survivors as (line, operator, new text)."""
    from cosmic_ray.work_db import WorkDB, use_db
    from cosmic_ray.work_item import WorkerOutcome

    killed, survivors = 0, []
    with use_db(str(session), WorkDB.Mode.open) as work:
        for item, result in work.completed_work_items:
            if result.worker_outcome == WorkerOutcome.SKIPPED:
                continue
            if result.is_killed:
                killed += 1
                continue
            new = [line[1:].strip() for line in (result.diff or "").splitlines()
                   if line.startswith("+") and not line.startswith("+++")]
            survivors.append((item.mutations[0].start_pos[0], item.mutations[0].operator_name.split("/")[1],
                              " ".join(new)))
    return killed, sorted(survivors)


def table(rows):
    """Write the rows of `mutate` as Markdown: a table, then every survivor."""
    lines = ["| file | tried | killed | survived | left out |", "| --- | --- | --- | --- | --- |"]
    for file, killed, survivors, left_out in rows:
        tried = killed + len(survivors)
        lines.append(f"| {file} | {tried} | {killed} ({killed / max(tried, 1):.0%}) | {len(survivors)} | {left_out} |")
    for file, _, survivors, _ in rows:
        lines += [f"- {file}:{line} {operator}: `{new}`" for line, operator, new in survivors]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    exit_on_user_error(main)
