"""Evaluate anyone's features under the protocols of this project; compare two methods on the same queries.

    python tools/evaluate.py features.npz [other.npz] [--protocol sysu] [--mode all] [--rerank] [--output FOLDER]

A file holds the arrays rgb_features (N, D) numbers, rgb_persons and rgb_cameras (N,) integers, rgb_paths (N,) text, and
the same for ir. Rows are compared by cosine. What `python test.py --save_ranking` writes (tests/*/features.npz) also
holds the queries and galleries of that test, and they are used. For another file they are drawn from all of its images
by --protocol: the file must then hold all test images, with the data set's own camera numbers and file names, for the
galleries of SYSU-MM01 and LLCM depend on the order of the names.

Prints a table, and writes metrics.json, ranked lists (CSV) and report.html to FOLDER (default: beside the file, its
name and -evaluated). With two files also the difference, second minus first, with a 95 % interval and a p-value of a
paired bootstrap over the queries. --rerank: k-reciprocal re-ranking (Zhong et al., CVPR 2017; k1 20, k2 6, 0.3); its
numbers are labelled, for they do not compare with others.
"""
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the tool lies one folder below the imports

from utils.errors import Parser, UserError, exit_on_user_error, whole_number  # noqa: E402

DRAWN = ("sysu", "sysu-original-1", "sysu-original-10", "regdb", "llcm")       # of tools.lib.feature_file.PROTOCOLS


def parse_arguments(arguments=None):
    """Read the command line. Raises UserError: it is not understood."""
    parser = Parser(__doc__)
    parser.add_argument("features", help="a .npz file")
    parser.add_argument("other", nargs="?", help="a second one, of the same images, to compare with the first")
    parser.add_argument("--protocol", default="", choices=DRAWN,
                        help="draw queries and galleries from all images of the file; default: those that it holds")
    parser.add_argument("--mode", action="append", default=[], help="all, indoor, v2t or t2v; default: every one")
    parser.add_argument("--trials", type=whole_number(1, 10_000), default=10, help="galleries to draw; default: 10")
    parser.add_argument("--root", default="", help="folder of the data set, for pictures on the page and for the "
                        "galleries of sysu-original-1 and -10")
    parser.add_argument("--rerank", action="store_true", help="k-reciprocal re-ranking")
    parser.add_argument("--output", help="folder of the results")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    exit_on_user_error(parse_arguments)     # --help and mistakes are answered before the slow imports

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from data.images import read_image  # noqa: E402
from processor.evaluate import format_table, metrics_record, rank_features  # noqa: E402
from processor.ranking import rank_trial, save_ranked_lists  # noqa: E402
from processor.run.resume import lock_folder  # noqa: E402
from report.content import retrieval_content  # noqa: E402
from report.write import save_report  # noqa: E402
from tools.lib.bootstrap import paired_bootstrap  # noqa: E402
from tools.lib.feature_file import aligned, as_data_set, per_query, read_features  # noqa: E402
from tools.lib.rerank import K1, K2, SHARE, rerank  # noqa: E402
from utils.checkpoint import save_json  # noqa: E402
from utils.runtime import open_log  # noqa: E402
from utils.seeding import numpy_rng  # noqa: E402

SIZE = (144, 72)        # pixels of a picture on the page
RERANKED = f"re-ranked (k1 {K1}, k2 {K2}, {SHARE})"


class PagePictures:
    """The pictures of a page by position, read when they are shown; grey ones where there is no file."""

    def __init__(self, root, paths):
        self.root, self.paths = root, paths
        self.images = self      # as `ImageBank.images`

    def __getitem__(self, position):
        """Return the picture of an image: (H, W, 3) uint8."""
        path = Path(self.root) / self.paths[position]
        if self.root and path.is_file():
            return read_image(path, *SIZE, "leave out --root")
        return np.asarray(Image.new("RGB", SIZE[::-1], "#9a9a9a"))


def evaluate_file(file, data, retrievals, measure, folder, root):
    """Print the table of a file and write its results: [`Evaluation`].

    Args: measure: of `rank_features`; folder: of the results; root: of the pictures.
    """
    features = {m: (np.arange(len(values)), values) for m, values in file.features.items()}
    evaluations = [rank_features(data, retrieval, features, measure) for retrieval in retrievals]
    if measure:
        evaluations = [replace(evaluation, protocol=f"{evaluation.protocol}, {RERANKED}") for evaluation in evaluations]
    with lock_folder(folder):
        log = open_log(folder, "evaluate")
        for retrieval, evaluation in zip(retrievals, evaluations):
            log.info(f"{file.path}: {evaluation.protocol}, {len(retrieval.query):,} queries, "
                     f"{len(retrieval.galleries[0]):,} gallery images, mean of {len(retrieval.trials)} trials\n"
                     + format_table([{"what": file.path.name, **evaluation.mean()}]))
        results = [metrics_record(evaluation, data, checkpoint=str(file.path), selection="as given",
                                  reranked=measure is not None) for evaluation in evaluations]
        save_json(folder / "metrics.json", {**results[0], "results": results} if len(results) > 1 else results[0])
        save_ranked_lists(folder, data, retrievals, evaluations)
        banks = {m: PagePictures(root, images.paths) for m, images in data.test.items()}
        save_report(folder, log, "test", lambda: retrieval_content(
            data, banks, [rank_trial(data, *tested) for tested in zip(retrievals, evaluations)]))
        log.info(f"written to {folder}")
    return evaluations


def compare(files, data, retrievals, measure):
    """Compare two files on the same queries: [{"mode", "number", "difference", "low", "high", "p", "queries"}]."""
    rows = []
    for retrieval in retrievals:
        first, second = (per_query(data, retrieval, file.features, measure) for file in files)
        for name in first:
            differences = second[name] - first[name]
            differences = differences[~np.isnan(differences)]
            found = paired_bootstrap(differences, numpy_rng(0, "paired bootstrap", retrieval.mode, name))
            rows.append({"mode": retrieval.mode, "number": name, "difference": found.mean, "low": found.low,
                         "high": found.high, "p": found.p, "queries": len(differences)})
    return rows


def main(arguments=None):
    """Evaluate the files that the command line names."""
    options = parse_arguments(arguments)
    paths = [Path(path) for path in (options.features, options.other) if path]
    files = [read_features(path) for path in paths]
    first, data, retrievals = as_data_set(files[0], options.protocol, options.root, options.trials, options.mode)
    files = [first, *(aligned(file, first) for file in files[1:])]
    measure = rerank if options.rerank else None
    folders = [path.with_name(f"{path.stem}-evaluated") for path in paths]
    if options.output:
        folders = [Path(options.output) / (path.stem if len(paths) > 1 else "") for path in paths]
    if len(set(folders)) < len(folders):
        raise UserError(f"both files would be written to {folders[0]}; give one of them another name")
    for file, folder in zip(files, folders):
        evaluate_file(file, data, retrievals, measure, folder, options.root)
    if len(files) > 1:
        rows = compare(files, data, retrievals, measure)
        save_json(folders[1] / "comparison.json", {"first": str(paths[0]), "second": str(paths[1]),
                                                   "reranked": options.rerank, "differences": rows})
        print(f"\n{paths[1]} minus {paths[0]}{f', {RERANKED}' if measure else ''}, percent, paired bootstrap over the "
              "queries")
        for row in rows:
            difference, low, high = (100 * row[name] for name in ("difference", "low", "high"))
            print(f"{row['mode']:<7}{row['number'].replace('rank', 'Rank-'):<7}{difference:+7.2f}   95 % from "
                  f"{low:+.2f} to {high:+.2f}   p {row['p']:.4f}   {row['queries']:,} queries")


if __name__ == "__main__":
    exit_on_user_error(main)
