"""The page of a run: OUTPUT_DIR/report.html, one file with all curves, results and pictures; nothing is fetched.

    python -m utils.report RUN_DIR [--figures DIR]
    python -m utils.report RUN_DIR RUN_DIR ... [--output FILE] [--figures DIR]

The stages write the page of their run at their end; the first command writes it again, also while a run is going on.
Several runs are compared on one page, FILE or FIRST_RUN_DIR/comparison.html. --figures writes every figure as PNG
and PDF.
"""
import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from utils import page
from utils.checkpoint import write_atomically
from utils.curves import STAGES, comparison_charts, stage_charts
from utils.errors import Parser, UserError, exit_on_user_error
from utils.figures import (
    MODALITY_NAMES,
    SERIES,
    Chart,
    Line,
    chart_figure,
    distance_figure,
    map_figure,
    save_figures,
    svg,
)

PARTS = {"test": "test.py", "model": "train_clip.py, last epoch", "prepare": "train_prepare.py, last epoch"}
NUMBERS = {"rank1": "Rank-1", "rank5": "Rank-5", "rank10": "Rank-10", "rank20": "Rank-20", "mAP": "mAP", "mINP": "mINP"}
DISTANCES = {"across": "Distances, visible to infrared", "rgb": "Distances among visible",
             "ir": "Distances among infrared"}
KINDS = {"best": "Best queries", "worst": "Worst queries", "random": "Random queries"}


@dataclass(frozen=True)
class RunFiles:
    """What the files of a run's folder hold."""

    folder: Path
    config: dict    # config.yml
    rows: list      # metrics.jsonl, a dict per epoch
    tests: dict     # where -> metrics.json, of the folder and the folders in it
    parts: dict     # name in PARTS -> report_data/NAME.json


def read_run(folder):
    """The `RunFiles` of a folder. Raises UserError: it is not there, holds no run, or a file of it is damaged."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; expected the OUTPUT_DIR of train_prepare.py, train_clip.py or test.py")
    lines = _read(folder / "metrics.jsonl", lambda text: [json.loads(line) for line in text.splitlines()], [])
    found = [path for path in (folder / "metrics.json", *sorted(folder.glob("*/metrics.json"))) if path.is_file()]
    tests = {str(path.parent.relative_to(folder)): _read(path, json.loads, None) for path in found
             if not path.parent.name.startswith("old-")}
    parts = {name: _read(folder / "report_data" / f"{name}.json", json.loads, None) for name in PARTS}
    parts = {name: content for name, content in parts.items() if content}
    if not (lines or tests or parts):
        raise UserError(f"{folder} holds no run (no metrics.jsonl, metrics.json or report_data); expected the "
                        "OUTPUT_DIR of train_prepare.py, train_clip.py or test.py after an epoch or a test")
    return RunFiles(folder, _read(folder / "config.yml", yaml.safe_load, {}) or {}, lines, tests, parts)


def _read(path, parse, default):
    if not path.is_file():
        return default
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())[:120]}); expected the file that the "
                        "run wrote. Run the stage again, or remove the file")


class Figures:
    """Figures by name, in the order they were added; `add` gives the HTML of each."""

    def __init__(self):
        self.by_name = {}

    def add(self, name, figure):
        """Keep a figure, and its SVG."""
        self.by_name[name] = figure
        return svg(figure, f"f{len(self.by_name)}")

    def charts(self, charts):
        """Panels of several `Chart`s."""
        return page.panels([self.add(chart.name, chart_figure(chart)) for chart in charts])


def write_report(folder, figures_dir=None):
    """Write FOLDER/report.html, and the figures as files if a folder is named: the page's path."""
    run, figures = read_run(folder), Figures()
    results = result_rows(run)
    sections = [("results", "Results", _results(results) + figures.charts(_cmc_charts(run)))]
    for stage, title in STAGES.items():
        sections.append((f"curves-{stage}", f"Curves: {title}", figures.charts(stage_charts(run.rows, stage))))
    for name, content in run.parts.items():
        heading = PARTS[name]
        sections += [(f"embeddings-{name}", f"Embeddings: {heading}", _embeddings(name, content, figures)),
                     (f"lists-{name}", f"Ranked lists: {heading}", _lists(content)),
                     (f"clusters-{name}", f"Clusters: {heading}", _clusters(content.get("clusters")))]
    sections += [("data", "Data set", _data_table(run)), ("settings", "Settings", _settings(run.config))]
    images = {name: data for content in run.parts.values() for name, data in content["images"].items()}
    path = run.folder / "report.html"
    text = page.page(f"Run {run.folder.resolve().name}", _subtitle(run), sections, images)
    write_atomically(path, lambda file: file.write(text.encode()))
    if figures_dir:
        save_figures(figures_dir, figures.by_name)
    return path


def result_rows(run):
    """Results as (what, protocol, numbers): tests of test.py, last and best epoch of each stage."""
    rows = []
    for where, metrics in run.tests.items():
        what = "test.py" if where == "." else where
        rows += [(f"{what}: {Path(m.get('checkpoint', '')).name}", m["protocol"], m)
                 for m in metrics.get("results", [metrics])]
    for stage, title in STAGES.items():
        tested = [row for row in run.rows if row["stage"] == stage and "test" in row]
        if tested:
            best = max(tested, key=lambda row: row["test"]["rank1"])
            rows.append((f"{title}: epoch {tested[-1]['epoch']}, the last tested", tested[-1]["test"]["protocol"],
                         tested[-1]["test"]))
            if best is not tested[-1]:
                rows.append((f"{title}: epoch {best['epoch']}, best Rank-1 on test data", best["test"]["protocol"],
                             best["test"]))
    return rows


def _results(rows):
    if not rows:
        return ""
    what, protocol, numbers = next(row for row in reversed(rows) if "best Rank-1" not in row[0])
    tiles = page.tiles([(f"{100 * numbers[key]:.1f} %", name) for key, name in NUMBERS.items()])
    return f"<p>{page.escape(what)}; {page.escape(protocol)}</p>{tiles}{_results_table(rows)}"


def _results_table(rows):
    body = [(what, protocol, *(f"{100 * numbers[key]:.2f}" for key in NUMBERS)) for what, protocol, numbers in rows]
    return page.table(("in percent", "protocol", *NUMBERS.values()), body, text_columns=2)


def _cmc_charts(run):
    """A CMC chart per mode, with a line per part that was tested in it."""
    charts = {}
    for index, (name, content) in enumerate(run.parts.items()):
        for test in content["tests"]:
            charts.setdefault(test["mode"], []).append(_cmc_line(PARTS[name].partition(",")[0], test, index))
    return [Chart(f"cmc_{mode}", "CMC", tuple(lines), f"% found within a rank; {mode}", "rank", top=100)
            for mode, lines in charts.items()]


def _cmc_line(label, test, index):
    return Line(label, list(range(1, len(test["cmc"]) + 1)), [100 * v for v in test["cmc"]],
                SERIES[index % len(SERIES)])


def _embeddings(name, content, figures):
    found = content["distances"]
    drawn = [figures.add(f"{name}_map", map_figure("Test embeddings", **content["map"]))]
    drawn += [figures.add(f"{name}_distances_{key}", distance_figure(title, found["edges"], **found[key]))
              for key, title in DISTANCES.items()]
    return (f'<div class="split"><div class="panel">{drawn[0]}</div>{page.panels(drawn[1:])}</div>')


def _lists(content):
    text = ""
    for test in content["tests"]:
        source = MODALITY_NAMES[test["query_modality"]]
        other = next(name for name in MODALITY_NAMES.values() if name != source)
        text += (f"<h3>{page.escape(test['protocol'])}: {source} query, {other} gallery</h3><p>Trial {test['trial']}: "
                 f"{test['queries']:,} queries, {test['gallery']:,} gallery images. ✓ and a solid frame: the query's "
                 "person; ✗ and a dashed frame: another. The number is the cosine distance.</p>")
        for kind, title in KINDS.items():
            lists = [page.ranked_list(entry) for entry in test["lists"] if entry["kind"] == kind]
            text += f"<h3>{title}</h3>{page.panels(lists, wide=True)}" if lists else ""
    return text


def _clusters(content):
    if not content:
        return ""
    text = "<p>Clusters of the last epoch." + (" A dashed frame marks an image of another person than most of its "
                                               "cluster's.</p>" if content["known"] else "</p>")
    if content["pairs"]:
        text += ("<h3>Matched pairs, the most alike" + (" right and wrong ones" if content["known"] else "") + "</h3>"
                 "<p>The similarity is that of the memories after the epoch, in which swapping has mixed pairs.</p>"
                 + page.panels([page.pair(pair) for pair in content["pairs"]], wide=True))
    for kind, title in (("largest", "Largest clusters"), ("impure", "Most impure clusters")):
        for modality, name in MODALITY_NAMES.items():
            sheets = content.get(f"{kind}_{modality}")
            if sheets:
                text += f"<h3>{title}, {name}</h3>{page.panels([page.sheet(s) for s in sheets])}"
    for modality, name in MODALITY_NAMES.items():
        outliers = content[f"outliers_{modality}"]
        if outliers["images"]:
            text += (f"<h3>Outliers, {name}: {len(outliers['images'])} of {outliers['size']:,}</h3>"
                     f'<div class="panel">{page.members(outliers["images"])}</div>')
    return text


def _data_table(run):
    for content in run.parts.values():
        rows = [(f"{row['split']}, {MODALITY_NAMES[row['modality']]}", f"{row['persons']:,}", f"{row['images']:,}",
                 ", ".join(f"camera {camera}: {count:,}" for camera, count in row["cameras"].items()))
                for row in content["data"]]
        return page.table(("split", "persons", "images", "images per camera"), rows)
    return ""


def _settings(config):
    rows = list(flat(config).items())
    return page.table(("key", "value"), rows, text_columns=2) if rows else ""


def flat(tree, prefix=""):
    """A tree of dicts as {"A.B": value}."""
    found = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _subtitle(run):
    dataset = run.config.get("DATASET", {}).get("NAME", "")
    epochs = ", ".join(f"{STAGES[stage]} {max(row['epoch'] for row in run.rows if row['stage'] == stage)} epochs"
                       for stage in STAGES if any(row["stage"] == stage for row in run.rows))
    return " · ".join(filter(None, (dataset, f"seed {run.config.get('SEED', '?')}", epochs, str(run.folder))))


def write_comparison(folders, output=None, figures_dir=None):
    """Write one page that compares several runs: its path."""
    runs = {}
    for folder in folders:
        run = read_run(folder)
        names = run.folder.resolve().name, str(run.folder), f"{run.folder} ({len(runs) + 1})"
        runs[next(name for name in names if name not in runs)] = run
    figures = Figures()
    rows = [(f"{name}, {what}", protocol, numbers) for name, run in runs.items()
            for what, protocol, numbers in result_rows(run)]
    protocols = {protocol for _, protocol, _ in rows}
    note = "<p>Numbers of different protocols do not compare.</p>" if len(protocols) > 1 else ""
    sections = [("results", "Results", note + _results_table(rows) if rows else ""),
                ("differences", "Settings that differ", _differences(runs)),
                ("cmc", "CMC", figures.charts(_common_cmc(runs)))]
    for stage, title in STAGES.items():
        charts = comparison_charts({name: run.rows for name, run in runs.items()}, stage)
        sections.append((f"curves-{stage}", f"Curves: {title}", figures.charts(charts)))
    path = Path(output) if output else next(iter(runs.values())).folder / "comparison.html"
    text = page.page(f"Comparison of {len(runs)} runs", " · ".join(runs), sections, {})
    write_atomically(path, lambda file: file.write(text.encode()))
    if figures_dir:
        save_figures(figures_dir, figures.by_name)
    return path


def _differences(runs):
    settings = {name: flat(run.config) for name, run in runs.items()}
    keys = sorted({key for tree in settings.values() for key in tree})
    rows = [(key, *(tree.get(key, "–") for tree in settings.values())) for key in keys
            if len({str(tree.get(key)) for tree in settings.values()}) > 1]
    return page.table(("key", *runs), rows, text_columns=1 + len(runs)) if rows else "<p>None.</p>"


def _common_cmc(runs):
    """A CMC chart per part and mode that some runs have, with a line for each of them."""
    charts = {}
    for index, (name, run) in enumerate(runs.items()):
        for part, content in run.parts.items():
            for test in content["tests"]:
                charts.setdefault((part, test["mode"]), []).append(_cmc_line(name, test, index))
    return [Chart(f"{part}_cmc_{mode}", f"CMC: {PARTS[part]}", tuple(lines),
                  f"% found within a rank; {mode}", "rank", top=100)
            for (part, mode), lines in charts.items()]


def main():
    """Write the page that the command line asks for."""
    parser = Parser(__doc__)
    parser.add_argument("folders", nargs="+", metavar="RUN_DIR")
    parser.add_argument("--output", help="the comparison's file")
    parser.add_argument("--figures", metavar="DIR", help="write the figures as PNG and PDF too")
    arguments = parser.parse_args()
    try:
        path = (write_report(arguments.folders[0], arguments.figures) if len(arguments.folders) == 1 else
                write_comparison(arguments.folders, arguments.output, arguments.figures))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"the files of {' and '.join(arguments.folders)} do not hold what the stages write (missing or "
                        f"of another kind: {error}); expected files of this version. Run the stages again")
    print(f"written to {path}")


if __name__ == "__main__":
    exit_on_user_error(main)
