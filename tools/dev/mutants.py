"""Break the method's core line by line with cosmic-ray, and count which breaks the tests notice.

    python tools/dev/mutants.py [--only loss/cluster_memory.py ...] [--sample 0.3] [--jobs 2] [--output FILE.md]

Every file is broken in a copy of the repository's last commit, one small change at a time (another operator, number,
comparison or branch), and the tests named for it here are run. Prints each survivor when it is found, and at the end
a table of killed and survived changes per file. Hours for all of it: `make mutants` runs it; it is no part of
`make test`.
"""
import importlib.util
import itertools
import json
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

FUNCTIONS, STEPS, METHODS = "test_golden_functions", "test_golden_model", "test_golden_methods test_methods"
NOTICES = "test_training_notices test_settings_reach test_streams test_defaults"
# file -> the tests that must notice
TESTS = {
    "loss/cluster_memory.py": f"test_memory {FUNCTIONS} {METHODS}",
    "loss/association.py": f"test_memory {FUNCTIONS} {METHODS}",
    "loss/cross_memory.py": f"test_memory test_defaults {FUNCTIONS} {STEPS} {METHODS} test_methods_resume",
    "loss/cclnet.py": f"test_memory {FUNCTIONS} {STEPS} {METHODS} test_methods_resume",
    "loss/pgm.py": f"{METHODS} test_methods_resume",
    "loss/rpnr.py": f"{METHODS} test_methods_resume",
    "loss/calibration.py": METHODS,
    "loss/image_text.py": FUNCTIONS,
    "processor/guidance.py": "test_train test_methods test_vit",
    "loss/linking.py": f"{METHODS} test_settings_reach",
    "processor/train.py": f"test_batches test_defaults test_train test_training_notices {STEPS} test_golden_schedule",
    "processor/prompt.py": f"test_batches test_defaults test_streams test_train test_training_notices {STEPS}",
    "processor/features.py": "test_features test_train test_compile test_fake_cuda test_training_notices",
    "data/pseudo_labels.py": "test_images test_security test_train test_defaults",
    "model/prompt.py": f"{STEPS} {NOTICES}",
    "data/sampler.py": "test_batches test_properties test_streams",
    "data/augment.py": "test_batches test_augment test_defaults",
    "processor/optim.py": f"{FUNCTIONS} test_vit test_bad_input",
    "utils/seeding.py": "test_streams test_batches",
    "clustering/jaccard.py": f"{FUNCTIONS} test_clustering test_properties",
    "processor/metrics.py": f"{FUNCTIONS} test_metrics test_properties",
    "processor/setup.py": "test_setup",
}
# An arithmetic operator becomes its opposite, a comparison its neighbours; others only give type errors.
OPPOSITES = ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Div", "Mod_Mul", "Pow_Mul", "BitAnd_BitOr",
             "BitOr_BitAnd")
EXCLUDED = [rf"ReplaceBinaryOperator_(?!({'|'.join(OPPOSITES)})$)",
            r"ReplaceComparisonOperator_(Is|IsNot|\w+_Is|\w+_IsNot)", r"ReplaceUnaryOperator_\w+_Invert",
            r"ReplaceComparisonOperator_(Lt_(Eq|NotEq|GtE)|LtE_(Eq|NotEq|Gt)|Gt_(Eq|NotEq|LtE)|GtE_(Eq|NotEq|Lt))",
            r"ReplaceComparisonOperator_(Eq|NotEq)_(Lt|Gt)E?$", "ExceptionReplacer", "VariableReplacer",
            "VariableInserter"]
# Loaded once; the process of every change is forked with them. Nothing of the project is among them.
SLOW_IMPORTS = ("torch", "torchvision", "torch.utils.tensorboard", "scipy.optimize", "scipy.io", "sklearn.cluster",
                "sklearn.manifold", "faiss", "faiss.contrib.torch_utils", "open_clip", "timm.scheduler", "hypothesis",
                "matplotlib.figure", "yacs.config", "PIL.Image", "pytest", "coverage")


def main():
    """Break the files that the command line names. Raises UserError: a name is unknown, or cosmic-ray is missing."""
    parser = Parser(__doc__)
    parser.add_argument("--only", nargs="+", default=list(TESTS), help="files; default: all of the core")
    parser.add_argument("--sample", type=real_number(0, 1), default=1.0,
                        help="share of the changes of each file that are tried")
    parser.add_argument("--jobs", type=whole_number(1, 1000), default=1, help="changes at a time")
    parser.add_argument("--timeout", type=whole_number(1, 10 ** 6), default=600,
                        help="most seconds for the tests of one change; usually three times what they take unchanged")
    parser.add_argument("--output", help="write the table there too, in Markdown")
    options = parser.parse_args()
    unknown = [file for file in options.only if file not in TESTS]
    if unknown:
        raise UserError(f"--only names {unknown[0]}; choose {', '.join(TESTS)}")
    missing = [name for name in ("cosmic_ray", "coverage") if not importlib.util.find_spec(name)]
    if missing:
        raise UserError(f"{missing[0]} is not installed beside this Python; run `make mutants`, or pip install "
                        "cosmic-ray coverage")
    changes = {file: sampled(list(changes_of((ROOT / file).read_text())), options.sample) for file in options.only}
    for name in SLOW_IMPORTS:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        workers = multiprocessing.get_context("fork").Pool(options.jobs, clone, (folder,))
        with workers:
            unchanged = dict(workers.map(try_unchanged, [(file, options.timeout) for file in options.only], 1))
            refuse_failing(unchanged)
            jobs = [(file, *change, *unchanged[file]) for file, found in changes.items() for change in found]
            results = list(workers.imap(is_noticed, jobs))
    text = table(changes, results)
    print(text)
    if options.output:
        Path(options.output).write_text(text)


def changes_of(text):
    """Yield every change of a source text: (operator, changed text)."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    for name in sorted(operator_names()):
        if not any(re.match(f"core/{pattern}", name) for pattern in EXCLUDED):
            for occurrence in itertools.count():
                changed = mutate_code(text, get_operator(name)(), occurrence)
                if changed is None:
                    break
                yield name.removeprefix("core/"), changed


def sampled(changes, share):
    """Draw a share of the changes, the same ones in every run."""
    return random.Random(0).sample(changes, round(len(changes) * share))


def clone(folder):
    """Make this worker's copy of the repository its working directory."""
    copy = tempfile.mkdtemp(dir=folder)
    subprocess.run(["git", "clone", "-q", ROOT, copy], check=True)
    os.chdir(copy)


def try_unchanged(job):
    """Run the tests of a file without a change: (file, (what `Watch` saw, seconds for the tests of a change)).

    In place of the pair None if they fail.
    """
    (file, timeout), started = job, time.monotonic()
    paths = [f"tests/{name}.py" for name in TESTS[file].split()]
    with tempfile.NamedTemporaryFile(suffix=".json") as seen:
        if not tests_pass(paths, timeout, (file, seen.name)):
            return file, None
        return file, (json.load(seen), min(timeout, 3 * (time.monotonic() - started) + 10))


def refuse_failing(unchanged):
    """Refuse to begin where tests fail by themselves: every change would count as noticed.

    Args: unchanged: file -> result of `try_unchanged`. Raises: UserError.
    """
    for file, result in unchanged.items():
        if result is None:
            raise UserError(f"the tests of {file} fail without any change ({TESTS[file]}); mend them first")


def is_noticed(job):
    """Run the tests of a changed line: (file, None), or of a survivor (file, (line, operator, new line)); printed too.

    Args: job: file, operator, changed text, what `Watch` saw, seconds.
    """
    file, operator, changed, seen, timeout = job
    before = Path(file).read_text()
    line = next((number for number, (old, new) in enumerate(zip(before.split("\n"), changed.split("\n")), 1)
                 if old != new and old), 0)     # with a decorator goes the empty line above it
    Path(file).write_text(changed)
    try:
        passed = tests_pass(tests_of(line, **seen), timeout)
    finally:
        Path(file).write_text(before)
    survivor = (line, operator, changed.split("\n")[line - 1].strip()) if passed else None
    print(f"{'survived' if passed else 'noticed'} {file}:{line} {operator}", flush=True)
    return file, survivor


def tests_of(line, lines, seconds):
    """List the tests to run for a change in a line, short ones first: those that ran it, or all.

    All where something else ran the line too, such as an import or a fixture.

    Args: lines: str of a line's number -> ids of the tests that ran it, "" for something else; a line without an entry
        belongs to the statement above it; seconds: id of each test -> how long it took.
    """
    ran = lines.get(str(max((int(known) for known in lines if int(known) <= line), default=0)), [""])
    return sorted(seconds if "" in ran else ran, key=seconds.get)


def tests_pass(tests, timeout, watched=None):
    """Run tests in a forked process of the working directory; one that takes too long has failed.

    Args: tests: as pytest takes them; watched: (file, path of a JSON file to which is written what ran each line of
        it), or None.
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
        import pytest
        watch = watched and Watch(*watched)
        code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests], [watch] if watch else None)
        if watch:
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


class Watch:
    """A plugin of pytest that notes how long tests take, and which run each line of a file.

    Args: path: of the JSON file for `save`.
    """

    def __init__(self, file, path):
        import coverage
        self.file, self.path, self.seconds = os.path.abspath(file), path, {}
        self.coverage = coverage.Coverage(data_file=None, config_file=False, include=[self.file])
        self.coverage.start()

    def pytest_runtest_setup(self, item):
        """Begin a test's fixtures."""
        self.coverage.switch_context("")

    def pytest_pyfunc_call(self, pyfuncitem):
        """Begin a test itself; pytest calls it after this."""
        self.coverage.switch_context(pyfuncitem.nodeid)

    def pytest_runtest_teardown(self, item):
        """End a test."""
        self.coverage.switch_context("")

    def pytest_runtest_logreport(self, report):
        """Note the time of a test without its fixtures."""
        if report.when == "call":
            self.seconds[report.nodeid] = report.duration

    def save(self):
        """Write the arguments of `tests_of`."""
        self.coverage.stop()
        lines = self.coverage.get_data().contexts_by_lineno(self.file)
        Path(self.path).write_text(json.dumps({"lines": lines, "seconds": self.seconds}))


def table(changes, results):
    """Write Markdown: a line per file, then every survivor. Args: results: list of (file, survivor or None)."""
    lines = ["| file | tried | killed | survived |", "| --- | --- | --- | --- |"]
    survivors = {file: [found for name, found in results if name == file and found] for file in changes}
    for file, found in changes.items():
        tried, killed = len(found), len(found) - len(survivors[file])
        lines.append(f"| {file} | {tried} | {killed} ({killed / max(tried, 1):.0%}) | {len(survivors[file])} |")
    lines += [f"- {file}:{line} {operator}: `{new}`" for file, found in survivors.items()
              for line, operator, new in sorted(found)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    exit_on_user_error(main)
