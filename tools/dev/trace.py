"""Count what a reader passes who follows train_prepare.py to its first training step, and through one step.

    python tools/dev/trace.py [--config_file configs/demo.yml] METHOD.CROSS_EPOCH 1 [--list]

Runs train_prepare.py with the words given, in a temporary OUTPUT_DIR, until its third step, and notes each call of a
function of this repository: from the start of main() to the first `train_step`, in the second `train_step`, and from
there to the third (the turn of the loop, with the batch that is drawn and what is logged). Prints the distinct
functions, their files, and the moves: how often the next call is of a function in another file.
"""
import contextlib
import inspect
import sys
import tempfile
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))     # the tool lies one folder below the imports

from utils.errors import Parser, exit_on_user_error  # noqa: E402

STEP = "train_step"


class Trace:
    """Notes the calls of this repository's functions: lists of (file, function)."""

    def __init__(self):
        self.before, self.in_step, self.turn, self.steps, self.inside = [], [], [], 0, None

    def __call__(self, frame, event, _):
        """Note an event of `sys.setprofile`."""
        code = frame.f_code
        is_function = code.co_flags & inspect.CO_OPTIMIZED and not code.co_name.startswith("<")
        if not is_function or not code.co_filename.startswith(f"{ROOT}/") or "site-packages" in code.co_filename:
            return
        if event == "return" and frame is self.inside:
            self.inside = None
        if event == "call":
            if code.co_name == STEP:
                self.steps += 1
                self.inside = frame if self.steps == 2 else None
                if self.steps == 3:
                    sys.exit()
            called = str(Path(code.co_filename).relative_to(ROOT)), getattr(code, "co_qualname", code.co_name)
            self.before += [called] * (not self.steps)
            self.in_step += [called] * (self.inside is not None)
            self.turn += [called] * (self.steps == 2)


def count(calls):
    """Count the distinct functions, their files, and the moves from file to file. Args: calls: [(file, function)]."""
    return (len(set(calls)), len({file for file, _ in calls}),
            sum(first != second for (first, _), (second, _) in zip(calls, calls[1:])))


def main():
    """Print the counts of each part."""
    parser = Parser(__doc__)
    parser.add_argument("--list", action="store_true", help="print every function too, in the order of the first call")
    parser.add_argument("--config_file", default="configs/demo.yml", help="default: configs/demo.yml")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="settings that differ from the file's")
    options, noted = parser.parse_intermixed_args(), Trace()
    for name in ("processor.setup", "processor.train", "report.write"):
        import_module(name)         # so that no import is counted
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(SystemExit):
        sys.argv = ["train_prepare.py", "--config_file", options.config_file, *options.overrides, "OUTPUT_DIR", folder]
        sys.setprofile(noted)
        import_module("train_prepare").main()
    sys.setprofile(None)
    for part, calls in (("before the first step", noted.before), ("in one step", noted.in_step),
                        ("in one turn of the loop", noted.turn)):
        print("{}: {} functions, {} files, {} moves".format(part, *count(calls)))
        if options.list:
            print("".join(f"  {file}  {function}\n" for file, function in dict.fromkeys(calls)), end="")


if __name__ == "__main__":
    exit_on_user_error(main)
