"""Writes the page of a run, and the page that compares several runs."""
import json
from pathlib import Path

from utils.checkpoint import write_atomically
from utils.report.curves import STAGES, comparison_charts, stage_charts
from utils.report.figures import (
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
from utils.report.groups import group_charts, group_runs, mean_rows
from utils.report.page import Section, Table, write_page
from utils.report.run_files import BEST, CONTENT_FOLDER, CONTENT_TITLES, flat, read_run

NUMBERS = {"rank1": "Rank-1", "rank5": "Rank-5", "rank10": "Rank-10", "rank20": "Rank-20", "mAP": "mAP", "mINP": "mINP"}
DISTANCES = {"across": "Distances, visible to infrared", "rgb": "Distances among visible",
             "ir": "Distances among infrared"}
DIFFERENT_PROTOCOLS = "Numbers of different protocols do not compare."


def save_report(folder, log, name, make_content):
    """Write what a finished stage shows and the run's page; an error becomes a warning in the log.

    Args: folder: OUTPUT_DIR; log: logger; name: "prepare", "finetune" or "test"; make_content: a function that gives
        the dict of report_data/NAME.json, `utils.report.content.stage_content` or `retrieval_content`.
    """
    try:
        content = json.dumps(make_content()).encode()
        write_atomically(Path(folder) / CONTENT_FOLDER / f"{name}.json", lambda file: file.write(content))
        log.info(f"page to look at: {write_run_page(folder)}")
    except Exception as error:      # no picture is worth a training run
        log.info(f"warning: the report could not be written ({type(error).__name__}: {error})")


def write_run_page(folder, figures_dir=None):
    """Write FOLDER/report.html: its path.

    Args: folder: of a run; figures_dir: where every figure goes as PNG and PDF too, if set.
    Raises: UserError: as `read_run` and `write_atomically`.
    """
    run, figures = read_run(folder), Figures()
    sections = [Section("results", "Results", "results.html", _results(run, figures))]
    sections += [_curves(stage, stage_charts(run.epochs, stage), figures) for stage in STAGES]
    for name, content in run.contents.items():
        title = CONTENT_TITLES[name]
        sections += [
            Section(f"embeddings-{name}", f"Embeddings: {title}", "embeddings.html",
                    _embeddings(name, content, figures)),
            Section(f"lists-{name}", f"Ranked lists: {title}", "ranked_lists.html", content["tests"]),
            Section(f"clusters-{name}", f"Clusters: {title}", "clusters.html", content.get("clusters"))]
    sections += [Section("data", "Data set", "table.html", _data_table(run.contents)),
                 Section("settings", "Settings", "table.html", _settings_table(run.config))]
    path = write_page(run.folder / "report.html", f"Run {run.folder.resolve().name}", _subtitle(run), sections,
                      run.pictures())
    if figures_dir:
        save_figures(figures_dir, figures.by_name)
    return path


def write_comparison_page(folders, output=None, figures_dir=None):
    """Write one page that compares several runs: its path. Runs that differ in their seed alone share a line, the mean.

    Args: folders: of the runs; output: the file, FIRST_FOLDER/comparison.html if not set; figures_dir: where every
        figure goes as PNG and PDF too, if set.
    Raises: UserError: as `read_run` and `write_atomically`.
    """
    runs, figures = _named_runs(folders), Figures()
    results = [(f"{name}, {what}", protocol, numbers) for name, run in runs.items()
               for what, protocol, numbers in run.results()]
    cmc = [(f"{name}_cmc", f"CMC: {CONTENT_TITLES[name]}", run_name, index, test)
           for index, (run_name, run) in enumerate(runs.items())
           for name, content in run.contents.items() for test in content["tests"]]
    note = DIFFERENT_PROTOCOLS if len({protocol for _, protocol, _ in results}) > 1 else ""
    groups = group_runs(runs)
    sections = [Section("means", "Means over the seeds", "table.html", _means_table(groups)),
                Section("results", "Results", "table.html", _results_table(results, note)),
                Section("differences", "Settings that differ", "table.html", _differences_table(runs)),
                Section("cmc", "CMC", "charts.html", figures.charts(_cmc_charts(cmc)))]
    epochs = {name: run.epochs for name, run in runs.items()}
    sections += [_curves(stage, group_charts(groups, stage) if groups else comparison_charts(epochs, stage), figures)
                 for stage in STAGES]
    path = write_page(Path(output) if output else Path(folders[0]) / "comparison.html",
                      f"Comparison of {len(runs)} runs", " · ".join(runs), sections)
    if figures_dir:
        save_figures(figures_dir, figures.by_name)
    return path


class Figures:
    """Keeps the figures of a page by name, in the order they were added."""

    def __init__(self):
        self.by_name = {}

    def add(self, name, figure):
        """Keep a figure: its SVG text."""
        self.by_name[name] = figure
        return svg(figure, f"f{len(self.by_name)}")

    def charts(self, charts):
        """Draw and keep `Chart`s: their SVG texts."""
        return [self.add(chart.name, chart_figure(chart)) for chart in charts]


def _curves(stage, charts, figures):
    """Make the section of a training stage's curves."""
    return Section(f"curves-{stage}", f"Curves: {STAGES[stage]}", "charts.html", figures.charts(charts))


def _results(run, figures):
    """Choose what stands at the top of a run's page: the last result in large figures, all results, CMC curves."""
    results = run.results()
    cmc = [("cmc", "CMC", CONTENT_TITLES[name].partition(",")[0], index, test)
           for index, (name, content) in enumerate(run.contents.items()) for test in content["tests"]]
    shown = {"headline": None, "table": _results_table(results), "charts": figures.charts(_cmc_charts(cmc))}
    if results:
        what, protocol, numbers = [result for result in results if BEST not in result[0]][-1]
        shown["headline"] = {"what": what, "protocol": protocol,
                             "numbers": [(name, 100 * numbers[key]) for key, name in NUMBERS.items()]}
    return shown if results or shown["charts"] else None


def _results_table(results, note=""):
    rows = [(what, protocol, *(f"{100 * numbers[key]:.2f}" for key in NUMBERS)) for what, protocol, numbers in results]
    return Table(("in percent", "protocol", *NUMBERS.values()), rows, 2, note) if rows else None


def _means_table(groups):
    rows = mean_rows(groups, NUMBERS)
    note = "Percent, mean ± standard deviation (n - 1)" + (
        "; in brackets the difference from the first group." if len(groups) > 1 else ".")
    return Table(("runs", "result", "protocol", "n", *NUMBERS.values()), rows, 3, note) if rows else None


def _cmc_charts(tests):
    """Make CMC charts. Args: tests: (begin of the chart's name, title, line's label, number of its colour, test)."""
    lines = {}
    for name, title, label, index, test in tests:
        line = Line(label, list(range(1, len(test["cmc"]) + 1)), [100 * share for share in test["cmc"]],
                    SERIES[index % len(SERIES)])
        lines.setdefault((name, title, test["mode"]), []).append(line)
    return [Chart(f"{name}_{mode}", title, tuple(found), f"% found within a rank; {mode}", "rank", top=100)
            for (name, title, mode), found in lines.items()]


def _embeddings(name, content, figures):
    """Draw the map of the embeddings and the histograms of their distances: {"map": SVG, "distances": [SVG]}."""
    found = content["distances"]
    return {"map": figures.add(f"{name}_map", map_figure("Test embeddings", **content["map"])),
            "distances": [figures.add(f"{name}_distances_{key}", distance_figure(title, found["edges"], **found[key]))
                          for key, title in DISTANCES.items()]}


def _data_table(contents):
    """Tell persons and images per split, modality and camera; all contents of a run are of one data set."""
    if not contents:
        return None
    rows = [(f"{row['split']}, {MODALITY_NAMES[row['modality']]}", f"{row['persons']:,}", f"{row['images']:,}",
             ", ".join(f"camera {camera}: {count:,}" for camera, count in row["cameras"].items()))
            for row in next(iter(contents.values()))["data"]]
    return Table(("split", "persons", "images", "images per camera"), rows)


def _settings_table(config):
    return Table(("key", "value"), list(flat(config).items()), 2) if config else None


def _subtitle(run):
    """Name the data set, the seed, how far each stage has come, and the folder."""
    last = {stage: max((row["epoch"] for row in run.epochs if row["stage"] == stage), default=0) for stage in STAGES}
    epochs = ", ".join(f"{STAGES[stage]} {epoch} epochs" for stage, epoch in last.items() if epoch)
    dataset = str(run.config.get("DATASET", {}).get("NAME", ""))
    return " · ".join(filter(None, (dataset, f"seed {run.config.get('SEED', '?')}", epochs, str(run.folder))))


def _named_runs(folders):
    """Read several runs: a name of its own for each -> `RunFiles`."""
    runs = {}
    for folder in folders:
        run = read_run(folder)
        names = run.folder.resolve().name, str(run.folder), f"{run.folder} ({len(runs) + 1})"
        runs[next(name for name in names if name not in runs)] = run
    return runs


def _differences_table(runs):
    """List the settings that are not the same in all runs."""
    settings = {name: flat(run.config) for name, run in runs.items()}
    keys = sorted({key for config in settings.values() for key in config})
    rows = [(key, *(config.get(key, "–") for config in settings.values())) for key in keys
            if len({str(config.get(key)) for config in settings.values()}) > 1]
    return Table(("key", *runs), rows, 1 + len(runs), "" if rows else "None.")
