"""Break the method's core line by line with cosmic-ray, and count which breaks the tests notice.

    python tools/dev/mutants.py [--only loss/cclnet.py ...] [--sample 0.3] [--jobs 2]

Makes one small change after another in a copy of the last commit (another operator, number, comparison or branch), and
runs the tests that reach the changed line. Prints each change as it is tried, and at the end a table of killed and
survived changes per file. Hours for all of it: `make mutants` runs it, which installs what it needs; it is no part of
`make test`.
"""
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

GOLDEN = "test_golden_functions test_golden_methods test_golden_model test_golden_epoch"
TRAINING = "test_streams test_defaults test_settings_reach test_training_notices test_train"
TESTS = {       # files -> the tests that must notice, the quick ones first
    "loss/*.py": "test_docs test_memory test_methods test_cameras test_golden_functions test_golden_methods "
                 "test_golden_field_nulc test_golden_field_sdcl test_golden_epoch",
    "clustering/*.py": "test_clustering test_golden_functions test_diagnosis test_train",
    "processor/train.py": f"{GOLDEN} {TRAINING} test_golden_schedule",
    "processor/prompt.py": f"{GOLDEN} {TRAINING}",
    "processor/guidance.py": "test_methods test_vit test_train",
    "processor/features.py": "test_features test_compile test_fake_cuda test_train test_golden_field_transreid",
    "processor/optim.py": "test_golden_functions test_vit test_bad_input test_golden_schedule",
    "processor/metrics.py": "test_golden_functions test_metrics",
    "processor/setup.py": "test_setup test_settings_reach test_bad_input test_nothing_lost test_distributed",
    "data/batches.py": "test_batches test_streams test_train",
    "data/pseudo_labels.py": "test_images test_security test_train test_nothing_lost",
    "data/augment.py": "test_augment test_batches test_defaults",
    "model/prompt.py": f"{GOLDEN} {TRAINING}",
    "utils/seeding.py": "test_streams test_batches",
}
# Tests run in forks of a process that has imported these: they take longer than most of the tests.
SLOW_IMPORTS = ["pytest", "open_clip", "torch.utils.tensorboard", "sklearn.cluster", "sklearn.metrics", "scipy.stats",
                "faiss.contrib.torch_utils", "jinja2", "timm.scheduler"]
SECONDS = 200       # for the tests of a change, after which they have failed
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
    groups = {names: [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob(names)) if path.stat().st_size]
              for names in TESTS}
    files = [file for group in groups.values() for file in group]
    parser = Parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=files, default=files, metavar="FILE", help="default: the core")
    parser.add_argument("--sample", type=real_number(0, 1), default=1.0, help="share of the changes that are tried")
    parser.add_argument("--jobs", type=whole_number(1, 1000), default=1, help="lines of TESTS at a time")
    options = parser.parse_args()
    chosen = {names: [file for file in group if file in options.only] for names, group in groups.items()}
    with ThreadPoolExecutor(options.jobs) as pool:
        found = pool.map(lambda names: break_files(chosen[names], TESTS[names], options.sample),
                         [names for names, group in chosen.items() if group])
        found = {file: numbers for group in found for file, numbers in group.items()}
    print("| file | tried | killed | survived |\n| --- | --- | --- | --- |")
    for file, (tried, survivors) in found.items():
        killed = tried - len(survivors)
        print(f"| {file} | {tried} | {killed} ({killed / max(tried, 1):.0%}) | {len(survivors)} |")
    print("\n".join(f"- {file}:{line} {operator}: `{new}`" for file, (_, survivors) in found.items()
                    for line, operator, new in sorted(survivors)))


def break_files(files, tests, sample):
    """Try a share of the changes of files with the same tests, in a clone of the repository.

    Args: files: paths; tests: their names, of TESTS. Returns: file -> how many were tried, survivors [(line, operator,
        new line)].
    """
    tests, found = [f"tests/{name}.py" for name in tests.split()], {}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "-q", ROOT, folder], check=True)
        clone = Path(folder)
        by_line = tests_by_line(clone, files, tests)
        for file in files:
            text, lines, survivors = (clone / file).read_text(), by_line.get(file, {}), []
            changes = changes_of(text)
            tried = random.Random(0).sample(changes, round(len(changes) * sample))
            for operator, line, changed in tried:
                (clone / file).write_text(changed)
                # a line that coverage does not name belongs to the statement above it
                wanted = lines.get(max((known for known in lines if known <= line), default=0), tests)
                survived = tests_pass(clone, wanted)
                print(f"{'survived' if survived else 'noticed'} {file}:{line} {operator}", flush=True)
                if survived:
                    survivors.append((line, operator, changed.split("\n")[line - 1].strip()))
            (clone / file).write_text(text)
            found[file] = len(tried), survivors
    return found


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


def tests_by_line(clone, files, tests):
    """Run tests unchanged in a clone: file -> {line: the tests to run for a change there}.

    Those are the tests that ran the line, or all where something else ran it too, such as an import or a fixture. They
    stand in the order of `tests`, the quick ones first.

    Raises: UserError: they fail; every change would count as noticed.
    """
    import coverage

    (clone / "watch.ini").write_text("[run]\ndynamic_context = test_function\ndata_file = watched\n")
    watch = [sys.executable, "-m", "coverage", "run", "--rcfile", "watch.ini", "--include", ",".join(files)]
    if subprocess.run([*watch, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests], cwd=clone,
                      capture_output=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}).returncode:
        raise UserError(f"the tests of {', '.join(files)} fail without any change: {', '.join(tests)}; mend them")
    stored = coverage.CoverageData(str(clone / "watched"))
    stored.read()

    def wanted(contexts):
        # coverage says "tests.test_memory.test_swap" or "test_memory.test_swap", and of a fixture "" or, as
        # if it were a test, "processor.setup.Setup.tester"
        names = [(f"tests/{file}.py", name) for file, name in (("", *context.split("."))[-2:] for context in contexts)]
        return ["::".join(name) for name in sorted(names, key=lambda name: (tests.index(name[0]), name))
                ] if {file for file, _ in names} <= set(tests) else tests

    return {str(Path(path).relative_to(clone.resolve())): {
        line: wanted(contexts) for line, contexts in stored.contexts_by_lineno(path).items()}
        for path in stored.measured_files()}


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
