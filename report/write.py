"""Writes the page of a run, and the page that compares several runs."""
import json
from functools import partial
from pathlib import Path

from clustering.quality import known_persons
from report.content import stage_content
from report.curves import STAGES, stage_charts
from report.figures import (
    MODALITY_NAMES,
    MUTED,
    SERIES,
    Chart,
    Line,
    chart_figure,
    distance_figure,
    map_figure,
    save_figures,
    svg,
)
from report.groups import comparison_charts, group_runs
from report.page import Section, Table, write_page
from report.results import (
    BASELINE,
    TRAINED,
    baseline_of,
    cells,
    compared_tables,
    find_results,
    main_result,
    result_tables,
)
from report.run_files import CONTENT_FOLDER, CONTENT_TITLES, read_run
from utils.checkpoint import write_atomically
from utils.errors import UserError
from utils.settings import differing_keys, flat

DISTANCES = {"across": "Distances, visible to infrared", "rgb": "Distances among visible",
             "ir": "Distances among infrared"}
COLOURS = {"baseline": MUTED, "prepare": SERIES[0], "finetune": SERIES[1]}      # of the CMC's lines
CMC_TICKS = (1, 5, 10, 20)


def save_stage_page(stage, state, run, tester, images):
    """Write a finished stage's part of the page, and the page, unless it is there already.

    Args: stage: "prepare" or "finetune"; state: `TrainState`, with an `evaluation` if the page is to be written;
        run: `Run`; tester: `Tester`; images: Modality -> `ImageBank` of the training images.
    """
    if state.evaluation is not None and run.processes.writes:
        linked = state.linked if state.linked is not None else ([], [], [])
        save_report(run.output_dir, run.log, stage, partial(
            stage_content, stage, tester.data, tester.banks, tester.retrieval, state.evaluation, images, state.labels,
            linked, known_persons(tester.data.train)))


def save_report(folder, log, name, make_content):
    """Write what a finished stage shows and the run's page; an error becomes a warning in the log.

    Args: folder: OUTPUT_DIR; log: logger; name: "prepare", "finetune" or "test"; make_content: a function that gives
        the dict of report_data/NAME.json, `report.content.stage_content` or `retrieval_content`.
    """
    try:
        content = json.dumps(make_content()).encode()
        write_atomically(Path(folder) / CONTENT_FOLDER / f"{name}.json", lambda file: file.write(content))
        log.info(f"page to look at: {write_run_page(folder)}")
    except Exception as error:      # no picture is worth a training run
        log.info(f"warning: the report could not be written ({type(error).__name__}: {error})")


def write_run_page(folder, figures_dir=None, only=(), all_stages=False):
    """Write FOLDER/report.html: its path.

    Args: folder: of a run; figures_dir: where figures go as PNG and PDF too, if set; only: words, of which a figure's
        name must hold one; all_stages: whether lists, map and clusters are shown of every stage, not of the last one.
    Raises: UserError: as `read_run` and `write_atomically`; no figure has such a name.
    """
    run, figures = read_run(folder), Figures()
    results = find_results(run)
    titled = [(CONTENT_TITLES[name], name, content) for name, content in run.contents.items()]
    clustered = [(title, content["clusters"]) for title, _, content in titled if content.get("clusters")]
    shown = titled if all_stages else titled[:1]
    epochs = _with_epoch_0(run, results)
    sections = [
        Section("results", "Results", "results.html", _results(results, figures)),
        Section("lists", "Ranked lists", "ranked_lists.html",
                [(title, content["tests"]) for title, _, content in shown]),
        Section("map", "Map", "embeddings.html",
                [(title, _embeddings(name, content, figures)) for title, name, content in shown]),
        Section("clusters", "Clusters", "clusters.html", clustered if all_stages else clustered[:1]),
        Section("training", "Losses and labels", "curves.html", _curves(
            figures, lambda stage: stage_charts(epochs, stage, False))),
        Section("details", "Details", "details.html",
                _curves(figures, lambda stage: stage_charts(epochs, stage, True))),
        Section("data", "Data set", "table.html", _data_table(run.contents)),
        Section("settings", "Settings", "table.html", _settings_table(run))]
    path = write_page(run.folder / "report.html", f"Run {run.folder.resolve().name}", _subtitle(run), sections,
                      run.pictures(), _facts(run, results))
    if figures_dir:
        save_figures(figures_dir, figures.named(only))
    return path


def write_comparison_page(folders, output=None, figures_dir=None, only=()):
    """Write one page that compares several runs: its path. Runs that differ in their seed alone share a line, the mean.

    Args: folders: of the runs; output: the file, FIRST_FOLDER/comparison.html if not set; figures_dir, only: as
        `write_run_page`.
    Raises: UserError: as `write_run_page`.
    """
    runs, figures = _named_runs(folders), Figures()
    groups = group_runs(runs)
    tables = compared_tables({name: [find_results(run) for run in group] for name, group in groups.items()})
    cmc = [(result.protocol, f"{TRAINED.get(result.stage, result.name)}", name, SERIES[index % len(SERIES)], result)
           for index, (name, run) in enumerate(runs.items()) for result in find_results(run) if not result.best]
    differences = f"Small numbers below: the difference to {next(iter(groups))}. " if len(groups) > 1 else ""
    note = (f"{differences}± is the standard deviation (n − 1) over the runs that differ in their seed alone, of a "
            "single run over its trials. Numbers of different protocols do not compare.")

    epochs = {name: [_with_epoch_0(run, find_results(run)) for run in group] for name, group in groups.items()}

    def charts(detail):
        return _curves(figures, lambda stage: comparison_charts(epochs, stage, detail))

    sections = [
        Section("results", "Results", "results.html", {"tiles": [], "note": note, "tables": tables, "charts":
                figures.charts(_cmc_charts(cmc))} if tables else None),
        Section("differences", "Settings that differ", "table.html", _differences_table(runs)),
        Section("training", "Losses and labels", "curves.html", charts(False)),
        Section("details", "Details", "details.html", charts(True))]
    path = write_page(Path(output) if output else Path(folders[0]) / "comparison.html",
                      f"Comparison of {len(runs)} runs", " · ".join(runs), sections)
    if figures_dir:
        save_figures(figures_dir, figures.named(only))
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

    def named(self, words):
        """Return the figures whose names hold one of the words, or all without words. Raises: UserError: none has."""
        found = {name: figure for name, figure in self.by_name.items()
                 if not words or any(word in name for word in words)}
        if not found:
            raise UserError(f"no figure of this page has {' or '.join(words)} in its name; there are "
                            f"{', '.join(self.by_name) or 'none'}")
        return found


def _curves(figures, make_charts):
    """Draw the curves of all stages: [(title, SVG texts)]. Args: make_charts: stage -> `Chart`s."""
    drawn = [(title, figures.charts(make_charts(stage))) for stage, title in STAGES.items()]
    return [(title, charts) for title, charts in drawn if charts]


def _with_epoch_0(run, results):
    """Return a run's rows with an epoch 0 before each stage that was tested: baseline CLIP by its tests' protocol."""
    first = {}
    for row in run.epochs:
        if "test" in row and row["stage"] not in first:
            first[row["stage"]] = baseline_of(results, row["test"]["protocol"])
    return [*({"stage": stage, "epoch": 0, "test": numbers} for stage, numbers in first.items() if numbers),
            *run.epochs]


def _results(results, figures):
    """Choose what stands at the top of a run's page: the last stage's numbers as tiles, all results, CMC curves."""
    if not results:
        return None
    last = main_result(results)
    baseline = baseline_of(results, last.protocol) if last.stage != "baseline" else None
    tiles = [{**cell, "gain": cell["gain"] and f"{cell['gain']} to {BASELINE}"} for cell in cells(last, baseline)]
    spread = "± is the standard deviation over the trials. " if any(result.spread for result in results) else ""
    gain = f"Small numbers below: the gain over {BASELINE}. " if baseline else (
        f"{BASELINE} was not tested here: python test.py without --resume_path does. ")
    cmc = [(result.protocol, "CMC", result.name, COLOURS.get(result.stage, SERIES[2 + index % 6]), result)
           for index, result in enumerate(results) if not result.best]
    return {"tiles": tiles, "what": f"{last.name}; {last.protocol}", "note": f"Percent. {spread}{gain}",
            "tables": result_tables(results), "charts": figures.charts(_cmc_charts(cmc))}


def _cmc_charts(tests):
    """Make CMC charts. Args: tests: (protocol, title, line's label, colour, `Result`)."""
    lines = {}
    for protocol, title, label, colour, result in tests:
        if result.cmc:
            line = Line(label, list(range(1, len(result.cmc) + 1)), [100 * share for share in result.cmc], colour,
                        "--" if result.stage == "baseline" else "-")
            lines.setdefault((title, protocol), []).append(line)
    return [Chart(f"cmc_{number}", title, tuple(found), f"% found within a rank; {protocol}", "rank", top=100,
                  ticks=CMC_TICKS, number="{:.1f}")
            for number, ((title, protocol), found) in enumerate(lines.items(), 1)]


def _embeddings(name, content, figures):
    """Draw the map of the embeddings and the histograms of their distances: {"map", "tiles", "distances"}."""
    found = content["distances"]
    return {"map": figures.add(f"{name}_map", map_figure(**content["map"])),
            "tiles": content["map"].get("tiles"),
            "distances": [figures.add(f"{name}_distances_{key}", distance_figure(title, found["edges"], **found[key]))
                          for key, title in DISTANCES.items()]}


def _data_table(contents):
    """Tell persons and images per split, modality and camera; all contents of a run are of one data set."""
    if not contents:
        return None
    rows = [(f"{row['split']}, {MODALITY_NAMES[row['modality']]}",
             ", ".join(f"camera {camera}: {count:,}" for camera, count in row["cameras"].items()),
             f"{row['persons']:,}", f"{row['images']:,}") for row in next(iter(contents.values()))["data"]]
    return Table(("split", "images per camera", "persons", "images"), rows, 2)


def _settings_table(run):
    """List the settings that are not the defaults, and below them all."""
    everything = Table(("key", "value"), list(flat(run.config).items()), 2, "All settings")
    defaults = next((facts["defaults"] for facts in run.about.values() if "defaults" in facts), None)
    if not run.config or defaults is None:
        return everything if run.config else None
    changed = [(key, value, defaults.get(key, "–")) for key, value in flat(run.config).items()
               if value != defaults.get(key)]
    return Table(("key", "value", "default"), changed, 3, "Settings that differ from the defaults." if changed else
                 "All settings are the defaults.", everything)


def _facts(run, results):
    """Tell where the results come from: [(name, text or list of texts)], empty where nothing is known."""
    about = list(run.about.values())
    last = about[-1] if about else {}
    data = run.config.get("DATASET", {})
    trial = f", trial {data.get('TRIAL')}" if data.get("NAME") == "regdb" else ""
    seconds = sum(row.get("seconds", 0) for row in run.epochs)
    return [("Method", last.get("method")), ("Bound, not a result", run.config.get("BOUND")),
            ("Data set", f"{data.get('NAME', '')}{trial}"),
            ("Protocol", main_result(results).protocol if results else ""),
            ("Date", str(last.get("started", ""))[:16].replace("T", " ")), ("Commit", last.get("commit")),
            ("Versions", ", ".join(f"{name} {number}" for name, number in last.get("versions", {}).items())),
            ("Hardware", last.get("hardware")), ("Training time", duration(seconds) if seconds else ""),
            ("Commands", [facts["command"] for facts in about])]


def duration(seconds):
    """Write seconds as hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _subtitle(run):
    """Name the seed, how far each stage has come, and the folder."""
    last = {stage: max((row["epoch"] for row in run.epochs if row["stage"] == stage), default=0) for stage in STAGES}
    epochs = ", ".join(f"{STAGES[stage]} {epoch} epochs" for stage, epoch in last.items() if epoch)
    return " · ".join(filter(None, (f"seed {run.config.get('SEED', '?')}", epochs, str(run.folder))))


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
    settings = [flat(run.config) for run in runs.values()]
    rows = [(key, *(config.get(key, "–") for config in settings)) for key in differing_keys(settings)]
    return Table(("key", *runs), rows, 1 + len(runs), "" if rows else "None.")
