"""Break the method's core line by line with cosmic-ray, and count which breaks the tests notice.

    python tools/dev/mutants.py [--only loss/cclnet.py ...] [--sample 0.3] [--jobs 2]

Every file is broken in a copy of the repository's last commit, one small change at a time (another operator, number,
comparison or branch), and those of its tests are run that run the changed line. Prints each change as it is tried, and
at the end a table of killed and survived changes per file. Hours for all of it: `make mutants` runs it, which installs
what it needs; it is no part of `make test`.
"""
import fnmatch
import itertools
import multiprocessing
import os
import random
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))     # the tool lies one folder below the imports

from utils.errors import Parser, UserError, exit_on_user_error, real_number, whole_number  # noqa: E402

GOLDEN = "test_golden_epoch test_golden_functions test_golden_model test_golden_methods"
TRAINING = "test_train test_training_notices test_settings_reach test_defaults test_streams"
TESTS = {       # files -> the tests that must notice
    "loss/*.py": "test_memory test_methods test_cameras test_golden_functions test_golden_methods "
                 "test_golden_field_nulc test_golden_field_sdcl test_golden_epoch",
    "processor/train.py": f"{GOLDEN} {TRAINING} test_golden_schedule",
    "processor/prompt.py": f"{GOLDEN} {TRAINING}",
    "processor/guidance.py": "test_train test_methods test_vit",
    "processor/features.py": "test_features test_compile test_fake_cuda test_train",
    "processor/optim.py": "test_golden_functions test_vit test_bad_input",
    "processor/metrics.py": "test_golden_functions test_metrics",
    "processor/setup.py": "test_setup",
    "data/batches.py": "test_batches test_streams test_train",
    "data/pseudo_labels.py": "test_images test_security test_train test_defaults",
    "data/augment.py": "test_augment test_batches test_defaults",
    "clustering/*.py": "test_clustering test_golden_functions test_diagnosis test_train",
    "model/prompt.py": f"{GOLDEN} {TRAINING}",
    "utils/seeding.py": "test_streams test_batches",
}
# Tests run in forks of a process that has imported these: they take longer than most of the tests.
SLOW_IMPORTS = ["pytest", "open_clip", "torch.utils.tensorboard", "sklearn.cluster", "sklearn.metrics", "scipy.stats",
                "faiss.contrib.torch_utils", "jinja2", "timm.scheduler"]
SECONDS = 600       # for the tests of a change, after which they have failed
FORKS = multiprocessing.get_context("forkserver")
# An arithmetic operator becomes its opposite, a comparison its neighbours; others only give type errors.
OPPOSITES = ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Div", "Mod_Mul", "Pow_Mul", "BitAnd_BitOr",
             "BitOr_BitAnd")
EXCLUDED = re.compile("core/(" + "|".join((
    rf"ReplaceBinaryOperator_(?!({'|'.join(OPPOSITES)})$)", r"ReplaceUnaryOperator_\w+_Invert",
    r"ReplaceComparisonOperator_(Is|IsNot|\w+_Is|\w+_IsNot)", r"ReplaceComparisonOperator_(Eq|NotEq)_(Lt|Gt)E?$",
    r"ReplaceComparisonOperator_(Lt_(Eq|NotEq|GtE)|LtE_(Eq|NotEq|Gt)|Gt_(Eq|NotEq|LtE)|GtE_(Eq|NotEq|Lt))",
    "ExceptionReplacer", "VariableReplacer", "VariableInserter")) + ")")


def main():
    """Break the files that the command line names. Raises UserError: a name is unknown, or tests fail unchanged."""
    files = [str(path.relative_to(ROOT)) for names in TESTS for path in sorted(ROOT.glob(names)) if path.stat().st_size]
    parser = Parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=files, default=files, metavar="FILE", help="default: the core")
    parser.add_argument("--sample", type=real_number(0, 1), default=1.0, help="share of the changes that are tried")
    parser.add_argument("--jobs", type=whole_number(1, 1000), default=1, help="files at a time")
    options = parser.parse_args()
    with ThreadPoolExecutor(options.jobs) as pool:
        found = dict(zip(options.only, pool.map(lambda file: break_file(file, options.sample), options.only)))
    print("| file | tried | killed | survived |\n| --- | --- | --- | --- |")
    for file, (tried, survivors) in found.items():
        killed = tried - len(survivors)
        print(f"| {file} | {tried} | {killed} ({killed / max(tried, 1):.0%}) | {len(survivors)} |")
    print("\n".join(f"- {file}:{line} {operator}: `{new}`" for file, (_, survivors) in found.items()
                    for line, operator, new in sorted(survivors)))


def break_file(file, sample):
    """Try a share of a file's changes in a clone: how many, and the survivors as [(line, operator, new line)]."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "-q", ROOT, folder], check=True)
        clone, survivors = Path(folder), []
        changes, lines = changes_of((clone / file).read_text()), tests_by_line(clone, file)
        tried = random.Random(0).sample(changes, round(len(changes) * sample))
        for operator, line, changed in tried:
            (clone / file).write_text(changed)
            # a line that coverage does not name belongs to the statement above it
            tests = lines.get(max((known for known in lines if known <= line), default=0), tests_of(file))
            survived = tests_pass(clone, tests)
            print(f"{'survived' if survived else 'noticed'} {file}:{line} {operator}", flush=True)
            if survived:
                survivors.append((line, operator, changed.split("\n")[line - 1].strip()))
    return len(tried), survivors


def changes_of(text):
    """List every change of a source text: [(operator, line, changed text)]."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    found = []
    for name in sorted(name for name in operator_names() if not EXCLUDED.match(name)):
        for occurrence in itertools.count():
            changed = mutate_code(text, get_operator(name)(), occurrence)
            if changed is None:
                break
            line = next((number for number, (old, new) in enumerate(zip(text.split("\n"), changed.split("\n")), 1)
                         if old != new and old), 0)     # with a decorator goes the empty line above it
            found.append((name.removeprefix("core/"), line, changed))
    return found


def tests_of(file):
    """List the paths of a file's tests."""
    names = next(names for pattern, names in TESTS.items() if fnmatch.fnmatch(file, pattern))
    return [f"tests/{name}.py" for name in names.split()]


def tests_by_line(clone, file):
    """Run a file's tests unchanged in a clone: {line: the tests to run for a change there}.

    Those are the tests that ran the line, or all where something else ran it too, such as an import or a fixture.

    Raises: UserError: they fail; every change would count as noticed.
    """
    import coverage

    (clone / "watch.ini").write_text("[run]\ndynamic_context = test_function\ndata_file = watched\n")
    watch = [sys.executable, "-m", "coverage", "run", "--rcfile", "watch.ini", "--include", file, "-m", "pytest", "-x"]
    if subprocess.run([*watch, "-q", "-p", "no:cacheprovider", *tests_of(file)], cwd=clone, capture_output=True,
                      env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}).returncode:
        raise UserError(f"the tests of {file} fail without any change: {tests_of(file)}; mend them")
    found = coverage.CoverageData(str(clone / "watched"))
    found.read()
    (measured,) = found.measured_files()
    # coverage says "tests.test_memory.test_swap" or "test_memory.test_swap", pytest "tests/test_memory.py::test_swap"
    return {line: tests_of(file) if "" in contexts else sorted(
        "tests/{}.py::{}".format(*context.split(".")[-2:]) for context in contexts)
        for line, contexts in found.contexts_by_lineno(measured).items()}


def tests_pass(clone, tests):
    """Run tests in a clone. Args: tests: as pytest takes them."""
    FORKS.set_forkserver_preload(SLOW_IMPORTS)
    process = FORKS.Process(target=run_tests, args=(clone, tests))
    process.start()
    process.join(SECONDS)
    process.kill()
    process.join()
    return process.exitcode == 0


def run_tests(clone, tests):
    """Run tests in this process and end it with pytest's exit code; what it has of this repository is imported anew."""
    import pytest
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None) or ""
        if path.startswith(f"{ROOT}/") and "site-packages" not in path and name != __name__:
            del sys.modules[name]
    sys.path[:] = [path for path in sys.path if path not in (str(ROOT), "")]
    sys.dont_write_bytecode = True
    os.chdir(clone)
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))


if __name__ == "__main__":
    exit_on_user_error(main)
