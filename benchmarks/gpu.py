"""Times of every part on a GPU, in at most five minutes; `make gpu` runs its tests and a short demo after it.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --only step embedding      # some parts
    python -m benchmarks.gpu --small --device cpu       # to try the command: the numbers say nothing

Parts run in turn until the time is used up. A part that fails is named, the others run, and the exit code is 1.
Tables and numbers land in benchmarks/results/gpu-<device>.{md,json}.
"""
import importlib.util
import sys
import time
import traceback
import types
from pathlib import Path

if importlib.util.find_spec("ftfy") is None:        # open_clip imports it; plain ASCII needs no repair
    sys.modules["ftfy"] = types.SimpleNamespace(fix_text=lambda text: text)

import torch  # noqa: E402

from benchmarks import gpu_parts as parts  # noqa: E402
from benchmarks import harness  # noqa: E402
from benchmarks.harness import Results  # noqa: E402
from utils.errors import Parser, UserError, exit_on_user_error  # noqa: E402
from utils.runtime import pick_device, unused_gpu_warning  # noqa: E402

MINUTES = 5.0
# name -> a function of a `Bench`, and the seconds that it takes on a fast GPU: without them it is left out
PARTS = {"step": (parts.steps, 40), "epoch": (parts.whole_epochs, 120), "embedding": (parts.embeddings, 25),
         "compiled": (parts.compiled_steps, 120), "clustering": (parts.clustering, 30),
         "augmentation": (parts.augmentation, 5), "memories": (parts.memories, 5)}


def run_parts(chosen, bench, budget):
    """Run parts in turn, for some seconds. Returns: {part: `Results`}; sentences on what was left out; what failed."""
    started, found, left_out, failed = time.perf_counter(), {}, [], []
    for name, (run, expected) in chosen.items():
        left = budget - (time.perf_counter() - started)
        if left < expected:
            left_out.append(f"Left out: {name}: {expected} s expected, {max(left, 0):.0f} s left")
            continue
        print(f"{name}:", flush=True)
        try:
            rows = run(bench)
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            failed.append(f"Failed: {name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            continue
        found[name] = Results(name)
        found[name].add(*rows)
    return found, left_out, failed


def main(words=None):
    """Run what the command line asks for."""
    parser = Parser(__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the command")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--minutes", type=float, default=MINUTES, help="after which no part begins")
    parser.add_argument("--folder", type=Path, default=harness.FOLDER, help="of the results")
    arguments = parser.parse_args(words)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("make gpu found no GPU; " + (unused_gpu_warning() or "expected one. To try the command, "
                                                     "run python -m benchmarks.gpu --small --device cpu"))
    bench = parts.Bench(pick_device(arguments.device), parts.SMALL if arguments.small else parts.FULL)
    found, left_out, failed = run_parts({name: part for name, part in PARTS.items() if name in arguments.only}, bench,
                                        60 * arguments.minutes)
    harness.write(arguments.folder / f"gpu-{harness.device_stem()}.json",
                  {name: results.section() for name, results in found.items()}, [*left_out, *failed])
    print("\n".join([*left_out, *failed]))
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    exit_on_user_error(main)
