"""Break the method's core line by line with cosmic-ray, and count which breaks the tests notice.

    python tools/dev/mutants.py [--only loss/cclnet.py ...] [--sample 0.3] [--jobs 2] [--output FILE.md]

Every file is broken in a copy of the repository's last commit, one small change at a time (another operator, number,
comparison or branch), and those of its tests are run that run the changed line. Prints each change as it is tried, and
at the end a table of killed and survived changes per file. Hours for all of it: `make mutants` runs it; it is no part
of `make test`.
"""
import fnmatch
import importlib
import itertools
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))     # the tool lies one folder below the imports

from utils.errors import Parser, UserError, exit_on_user_error, real_number, whole_number  # noqa: E402

GOLDEN = "test_golden_functions test_golden_model test_golden_methods"
TRAINING = "test_train test_training_notices test_settings_reach test_defaults test_streams"
TESTS = {       # files -> the tests that must notice
    "loss/*.py": f"{GOLDEN} test_memory test_methods test_settings_reach",
    "processor/train.py": f"{GOLDEN} {TRAINING} test_golden_schedule",
    "processor/prompt.py": f"{GOLDEN} {TRAINING}",
    "processor/guidance.py": "test_train test_methods test_vit",
    "processor/features.py": "test_features test_compile test_fake_cuda test_train",
    "processor/optim.py": "test_golden_functions test_vit test_bad_input",
    "processor/metrics.py": "test_golden_functions test_metrics test_properties",
    "processor/setup.py": "test_setup",
    "data/batches.py": "test_batches test_streams test_train",
    "data/pseudo_labels.py": "test_images test_security test_train test_defaults",
    "data/augment.py": "test_augment test_batches test_defaults",
    "data/sampler.py": "test_batches test_properties test_streams",
    "clustering/*.py": "test_clustering test_properties test_golden_functions",
    "model/prompt.py": f"{GOLDEN} {TRAINING}",
    "utils/seeding.py": "test_streams test_batches",
}
# An arithmetic operator becomes its opposite, a comparison its neighbours; others only give type errors.
OPPOSITES = ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Div", "Mod_Mul", "Pow_Mul", "BitAnd_BitOr",
             "BitOr_BitAnd")
EXCLUDED = re.compile("core/(" + "|".join((
    rf"ReplaceBinaryOperator_(?!({'|'.join(OPPOSITES)})$)", r"ReplaceUnaryOperator_\w+_Invert",
    r"ReplaceComparisonOperator_(Is|IsNot|\w+_Is|\w+_IsNot)", r"ReplaceComparisonOperator_(Eq|NotEq)_(Lt|Gt)E?$",
    r"ReplaceComparisonOperator_(Lt_(Eq|NotEq|GtE)|LtE_(Eq|NotEq|Gt)|Gt_(Eq|NotEq|LtE)|GtE_(Eq|NotEq|Lt))",
    "ExceptionReplacer", "VariableReplacer", "VariableInserter")) + ")")
# Loaded once; the process of every change is forked with them. Nothing of the project is among them.
SLOW_IMPORTS = ("torch", "torchvision", "torch.utils.tensorboard", "scipy.optimize", "scipy.io", "sklearn.cluster",
                "sklearn.manifold", "faiss", "open_clip", "timm.scheduler", "hypothesis", "matplotlib.figure", "pytest",
                "yacs.config", "PIL.Image", "coverage")


def main():
    """Break the files that the command line names. Raises UserError: a name is unknown, or tests fail unchanged."""
    files = [str(path.relative_to(ROOT)) for pattern in TESTS for path in sorted(ROOT.glob(pattern))
             if path.stat().st_size]
    parser = Parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=files, default=files, metavar="FILE", help="default: the core")
    parser.add_argument("--sample", type=real_number(0, 1), default=1.0, help="share of the changes that are tried")
    parser.add_argument("--jobs", type=whole_number(1, 1000), default=1, help="changes at a time")
    parser.add_argument("--timeout", type=whole_number(1, 10 ** 6), default=600, help="seconds for a change's tests")
    parser.add_argument("--output", help="write the table there too, in Markdown")
    options = parser.parse_args()
    try:
        for name in ("cosmic_ray", *SLOW_IMPORTS):
            importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{error.name} is not installed beside this Python; run `make mutants`")
    changes = {file: changes_of((ROOT / file).read_text()) for file in options.only}
    changes = {file: random.Random(0).sample(found, round(len(found) * options.sample))
               for file, found in changes.items()}
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("fork").Pool(
            options.jobs, clone, (folder,)) as workers:
        seen = dict(zip(options.only, workers.map(tests_by_line, options.only, 1)))
        failing = [file for file, lines in seen.items() if lines is None]
        if failing:         # every change would count as noticed
            raise UserError(f"the tests of {failing[0]} fail without any change: {tests_of(failing[0])}; mend them")
        jobs = [(file, *change, seen[file], options.timeout) for file, found in changes.items() for change in found]
        text = table(changes, list(workers.imap(try_change, jobs)))
    print(text)
    if options.output:
        Path(options.output).write_text(text)


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


def clone(folder):
    """Make this worker's copy of the repository its working directory."""
    copy = tempfile.mkdtemp(dir=folder)
    subprocess.run(["git", "clone", "-q", ROOT, copy], check=True)
    os.chdir(copy)


def tests_of(file):
    """List the paths of a file's tests."""
    names = next(names for pattern, names in TESTS.items() if fnmatch.fnmatch(file, pattern))
    return [f"tests/{name}.py" for name in names.split()]


def tests_by_line(file):
    """Run a file's tests unchanged: {line: the tests to run for a change there}; None if they fail.

    Those are the tests that ran the line, or all where something else ran it too, such as an import or a fixture.
    """
    with tempfile.NamedTemporaryFile(suffix=".coverage") as data:
        if not tests_pass(tests_of(file), 3600, (os.path.abspath(file), data.name)):
            return None
        import coverage
        found = coverage.CoverageData(data.name)
        found.read()
        lines = found.contexts_by_lineno(os.path.abspath(file))
    return {line: tests_of(file) if "" in contexts else sorted(map(node_id, contexts))
            for line, contexts in lines.items()}


def node_id(context):
    """Turn coverage's name of a test, "tests.test_memory.test_swap" or "test_memory.test_swap", into pytest's."""
    return "tests/{}.py::{}".format(*context.split(".")[-2:])


def tests_pass(tests, timeout, watched=None):
    """Run tests in a forked process of the working directory; one that takes too long has failed.

    Args: tests: as pytest takes them; watched: (file, where coverage writes which test ran each line of it), or None.
    """
    child = os.fork()
    if child == 0:
        os.setsid()
        sys.dont_write_bytecode = True
        sys.path[:] = [os.getcwd(), *(path for path in sys.path if Path(path).resolve() not in (ROOT, ROOT / "tools"))]
        for module in [name for name in sys.modules if name.split(".")[0] in ("utils", "tools")]:
            del sys.modules[module]
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        import coverage
        import pytest
        if watched:
            watch = coverage.Coverage(data_file=watched[1], config_file=False, include=[watched[0]])
            watch.set_option("run:dynamic_context", "test_function")
            watch.start()
        code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])
        if watched:
            watch.stop()
            watch.save()
        os._exit(int(code))
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            return status == 0
        time.sleep(0.1)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def try_change(job):
    """Run the tests of a changed line: (file, None), or of a survivor (file, (line, operator, new line)).

    Args: job: file, operator, line, changed text, `tests_by_line` of the file, seconds.
    """
    file, operator, line, changed, lines, timeout = job
    before = Path(file).read_text()
    # a line that coverage does not name belongs to the statement above it
    tests = lines.get(max((known for known in lines if known <= line), default=0), tests_of(file))
    Path(file).write_text(changed)
    try:
        survived = tests_pass(tests, timeout)
    finally:
        Path(file).write_text(before)
    print(f"{'survived' if survived else 'noticed'} {file}:{line} {operator}", flush=True)
    return file, (line, operator, changed.split("\n")[line - 1].strip()) if survived else None


def table(changes, results):
    """Write Markdown: a line per file, then every survivor. Args: results: list of (file, survivor or None)."""
    lines = ["| file | tried | killed | survived |", "| --- | --- | --- | --- |"]
    survivors = {file: sorted(found for name, found in results if name == file and found) for file in changes}
    for file, found in changes.items():
        tried, killed = len(found), len(found) - len(survivors[file])
        lines.append(f"| {file} | {tried} | {killed} ({killed / max(tried, 1):.0%}) | {len(survivors[file])} |")
    lines += [f"- {file}:{line} {operator}: `{new}`" for file in changes for line, operator, new in survivors[file]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    exit_on_user_error(main)
