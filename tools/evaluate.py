"""Evaluate anyone's features under the protocols of this project; compare two methods on the same queries.

    python tools/evaluate.py features.npz [other.npz] [--protocol sysu] [--mode all] [--rerank] [--output FOLDER]

A file holds the arrays rgb_features (N, D) numbers, rgb_persons and rgb_cameras (N,) integers, rgb_paths (N,) text, and
the same for ir. Rows are compared by cosine. What `python test.py --save_ranking` writes (tests/*/features.npz) also
holds the queries and galleries of that test, and they are used. For another file they are drawn from all of its images
by --protocol: the file must then hold all test images, with the data set's own camera numbers and file names, for the
galleries of SYSU-MM01 and LLCM depend on the order of the names. Other counts or cameras are refused; with --other_data
they are tested, and every result says "on other data".

Prints a table, and writes metrics.json, ranked lists (CSV) and each query's numbers to FOLDER (default: beside the
file, its name and -evaluated). A folder that holds a run, or results of another file or test, is refused. With two
files also whether the first is better than the second: first minus second, with the 95 % interval and the p-value of a
paired bootstrap over the queries, printed and in comparison-*.json of the first's folder. --rerank: k-reciprocal
re-ranking (Zhong et al., CVPR 2017; k1 20, k2 6, 0.3); its results are marked as re-ranked, since others are not
comparable.
"""
import json
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the tool lies one folder below the imports

from utils.errors import Parser, UserError, existing, exit_on_user_error, shown, whole_number  # noqa: E402

DRAWN = ("sysu", "sysu-original-1", "sysu-original-10", "regdb", "llcm")       # of tools.lib.feature_file.PROTOCOLS


def parse_arguments(arguments=None):
    """Read the command line. Raises UserError: it is not understood."""
    parser = Parser(__doc__)
    features = existing("file", "a .npz file of arrays, as python test.py --save_ranking writes it")
    parser.add_argument("features", type=features, help="a .npz file")
    parser.add_argument("other", type=features, nargs="?", help="of the same images, to compare the first with")
    parser.add_argument("--protocol", default="", choices=DRAWN,
                        help="draw queries and galleries from all images of the file; default: those that it holds")
    parser.add_argument("--other_data", action="store_true", help="the images may be others than those of the data set")
    parser.add_argument("--mode", action="append", default=[], help="all, indoor, v2t or t2v; default: every one")
    parser.add_argument("--trials", type=whole_number(1, 10_000), default=10, help="galleries to draw; default: 10")
    parser.add_argument("--root", default="", help="folder of the data set, for the galleries of sysu-original-*")
    parser.add_argument("--rerank", action="store_true", help="k-reciprocal re-ranking")
    parser.add_argument("--output", help="folder of the results")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    exit_on_user_error(parse_arguments)     # --help and mistakes are answered before the slow imports

import numpy as np  # noqa: E402

from configs.groups import distinct_names  # noqa: E402
from processor.evaluate import format_table, metrics_record, rank_features  # noqa: E402
from processor.ranking import save_per_query, save_ranked_lists  # noqa: E402
from report.paired import Compared, mean_of_trials, paired_bootstrap  # noqa: E402
from tools.lib.feature_file import aligned, as_data_set, read_features  # noqa: E402
from tools.lib.rerank import K1, K2, SHARE, rerank  # noqa: E402
from utils.checkpoint import save_json  # noqa: E402
from utils.seeding import numpy_rng  # noqa: E402

RERANKED = f"re-ranked (k1 {K1}, k2 {K2}, {SHARE})"
OF_RUNS = "config.yml", "*.pth", "*.safetensors", "metrics.jsonl"
WRITTEN = "metrics.json", "report.html", "ranking_*.csv", "per_query.npz", "comparison-*.json"


def check_folder(folder, file, protocols):
    """Refuse a folder in which something else would be replaced; results of the same test may be written again.

    Args: file: `FeatureFile`; protocols: names of its tests. Raises: UserError: a run lies there, or another result.
    """
    held = set()
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        record = json.loads((folder / "metrics.json").read_text())
        held = {(result["features"], result["protocol"]) for result in record.get("results", [record])}
    replaceable = held == {(file.digest, protocol) for protocol in protocols}
    for pattern in (*OF_RUNS, *WRITTEN[:0 if replaceable else None]):
        for found in folder.glob(pattern):
            raise UserError(f"{folder} holds {found.name} of a run, of other features or of another test; expected an "
                            "empty folder, for a result never replaces another one. Name one with --output")


def save_results(file, name, data, retrievals, evaluations, folder):
    """Print the table of a file and write its results. Args: name: in the table."""
    for retrieval, evaluation in zip(retrievals, evaluations):
        print(shown(f"{file.path}: {evaluation.protocol}, {len(retrieval.galleries[0]):,} gallery images, mean of "
                    f"{len(retrieval.trials)} trials\n" + format_table([{"what": name, **evaluation.mean()}])))
    results = [metrics_record(evaluation, data, checkpoint=str(file.path), features=file.digest, selection="as given",
                              reranked=evaluation.measure is not None) for evaluation in evaluations]
    save_json(folder / "metrics.json", {**results[0], "results": results} if len(results) > 1 else results[0])
    save_ranked_lists(folder, data, retrievals, evaluations)
    save_per_query(folder, evaluations)
    print(shown(f"written to {folder}"))


def compare(first, second):
    """Compare the `Evaluation`s of the first of two files with those of the second: [`Compared`]."""
    rows = []
    for ours, theirs in zip(first, second):
        numbers, others = mean_of_trials(**ours.per_query()), mean_of_trials(**theirs.per_query())
        for name, values in numbers.items():
            found = paired_bootstrap([(values - others[name])[None]],
                                     numpy_rng(0, "paired bootstrap", ours.mode, name))
            rows.append(Compared(ours.mode, name, found, len(values)))
    return rows


def main(arguments=None):
    """Evaluate the files that the command line names."""
    options = parse_arguments(arguments)
    paths = [Path(path) for path in (options.features, options.other) if path]
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError(f"{paths[0]} is named twice; expected two files to compare")
    names = distinct_names([path.with_suffix("") for path in paths]) if options.other else [paths[0].name]
    measure = rerank if options.rerank else None
    files = [read_features(path) for path in paths]
    files[0], data, retrievals = as_data_set(files[0], options.protocol, options.root, options.trials, options.mode,
                                             options.other_data)
    files[1:] = [aligned(file, files[0]) for file in files[1:]]
    if measure:
        retrievals = [replace(retrieval, protocol=f"{retrieval.protocol}, {RERANKED}") for retrieval in retrievals]
    folders = [path.with_name(f"{path.stem}-evaluated{'-reranked' if measure else ''}") for path in paths]
    if options.output:
        folders = [Path(options.output) / (name if len(paths) > 1 else "") for name in names]
    for file, folder in zip(files, folders):
        check_folder(folder, file, [retrieval.protocol for retrieval in retrievals])
    tested = []
    for file, name, folder in zip(files, names, folders):
        features = {m: (np.arange(len(values)), values) for m, values in file.features.items()}
        tested.append([rank_features(data, retrieval, features, measure) for retrieval in retrievals])
        save_results(file, name, data, retrievals, tested[-1], folder)
    if len(files) > 1:
        rows = compare(*tested)
        save_json(folders[0] / f"comparison-{names[1]}-{files[1].digest[:8]}.json", {
            "first": str(paths[0]), "second": str(paths[1]), "features": [file.digest for file in files],
            "reranked": options.rerank, "differences": [
                {"mode": row.test, "number": row.number, **row.found._asdict(), "scored": row.queries}
                for row in rows]})
        title = f"{names[0]} against {names[1]}{f', {RERANKED}' if measure else ''}"
        print(shown("\n".join(["", f"{title}, percentage points, paired bootstrap", *map(str, rows)])))


if __name__ == "__main__":
    exit_on_user_error(main)
