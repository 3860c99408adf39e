"""Count what a reader passes who follows train_prepare.py to its first training step, and through one step.

    python tools/dev/trace.py [--list]

Trains two epochs on a few drawn people with the demo's CLIP and notes each call of a function of this repository:
from the start of main() to the first `train_step`, in the second `train_step`, and from there to the third (the turn
of the loop, with the batch that is drawn and what is logged). Prints the distinct functions, their files, and the
moves: how often the next call is of a function in another file.
"""
import contextlib
import inspect
import io
import sys
import tempfile
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))     # the tool lies one folder below the imports

from utils.errors import Parser, exit_on_user_error  # noqa: E402

STEP = "train_step"
NUMBERS = ("functions", "files", "moves")
TARGETS = {"before the first step": (110, 25, 150), "in one step": (25, 8), "in one turn of the loop": ()}    # at most
PERSONS, IMAGES, HEIGHT, WIDTH = 12, 6, 96, 48
SETTINGS = {"DATASET.NAME": "regdb", "DATASET.CHECK_COUNTS": "False", "INPUT.HEIGHT": HEIGHT, "INPUT.WIDTH": WIDTH,
            "MODEL.CLIP_WEIGHTS": ROOT / "assets" / "demo_clip.pt", "DEVICE": "cpu", "CLUSTER.K1": 6, "CLUSTER.K2": 2,
            "CLUSTER.MIN_SAMPLES": 2, "SAMPLER.CLUSTERS": 2, "SAMPLER.INSTANCES": 4, "PREPARE.EPOCHS": 2,
            "METHOD.CROSS_EPOCH": 1}


class Trace:
    """Notes the calls of this repository's functions while main() runs: `calls` is period -> [(file, function)]."""

    def __init__(self):
        self.calls = {name: [] for name in TARGETS}
        self.steps, self.inside = 0, None

    def __call__(self, frame, event, _):
        """Note an event of `sys.setprofile`."""
        code = frame.f_code
        is_function = code.co_flags & inspect.CO_OPTIMIZED and not code.co_name.startswith("<")
        if not is_function or not code.co_filename.startswith(f"{ROOT}/") or "site-packages" in code.co_filename:
            return
        if event == "return" and frame is self.inside:
            self.inside = None
        if event != "call":
            return
        if code.co_name == STEP:
            self.steps += 1
            self.inside = frame if self.steps == 2 else None
        before, one_step, turn = self.calls.values()
        called = str(Path(code.co_filename).relative_to(ROOT)), getattr(code, "co_qualname", code.co_name)
        if not self.steps:
            before.append(called)
        if self.inside:
            one_step.append(called)
        if self.steps == 2:
            turn.append(called)


def count(calls):
    """Count the distinct functions, their files, and the moves from file to file. Args: calls: [(file, function)]."""
    return (len(set(calls)), len({file for file, _ in calls}),
            sum(first != second for (first, _), (second, _) in zip(calls, calls[1:])))


def draw(root):
    """Draw people in RegDB's layout under a folder: half of them to train on, half to test with."""
    import numpy as np  # slow: after the words were read
    from PIL import Image

    from data.demo import draw_camera, draw_people, render

    rng, lists = np.random.default_rng(0), {}
    for sensor in ("Visible", "Thermal"):
        camera = draw_camera(rng, sensor == "Thermal", 0.2)
        for label, person in enumerate(draw_people(np.random.default_rng(1), PERSONS)):
            (root / sensor / str(label)).mkdir(parents=True)
            for name in (f"{sensor}/{label}/{number}.bmp" for number in range(IMAGES)):
                Image.fromarray(render(person, camera, rng, HEIGHT, WIDTH)).save(root / name)
                lists.setdefault(f"{'test' if label % 2 else 'train'}_{sensor.lower()}_1.txt", []).append(
                    f"{name} {label}\n")
    (root / "idx").mkdir()
    for name, lines in lists.items():
        (root / "idx" / name).write_text("".join(lines))


def trace():
    """Run the miniature training: `Trace`. Raises UserError: as train_prepare.py."""
    for name in ("processor.setup", "processor.train", "report.write"):
        import_module(name)         # so that no import is counted
    noted = Trace()
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder) / "data")
        settings = {**SETTINGS, "DATASET.ROOT": Path(folder) / "data", "OUTPUT_DIR": Path(folder) / "run"}
        sys.argv = ["train_prepare.py", *(str(word) for pair in settings.items() for word in pair)]
        with contextlib.redirect_stdout(io.StringIO()):
            sys.setprofile(noted)
            try:
                import_module("train_prepare").main()
            finally:
                sys.setprofile(None)
    return noted


def main():
    """Print the counts beside their targets; exit with 1 if one is missed."""
    parser = Parser(__doc__)
    parser.add_argument("--list", action="store_true", help="print every function too, in the order of the first call")
    options, missed = parser.parse_args(), False
    for period, calls in trace().calls.items():
        cells = [f"{number} {name}" for number, name in zip(count(calls), NUMBERS)]
        for i, (number, most) in enumerate(zip(count(calls), TARGETS[period])):
            cells[i] += f" (at most {most})"
            missed |= number > most
        print(f"{period}: {', '.join(cells)}")
        if options.list:
            print("".join(f"  {file}  {function}\n" for file, function in dict.fromkeys(calls)), end="")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    exit_on_user_error(main)
