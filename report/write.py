"""Writes the page of a run."""
import json
from pathlib import Path

from configs.defaults import with_defaults
from report.content import stage_content
from report.curves import STAGES, cmc_charts, stage_charts
from report.figures import MODALITY_NAMES, MUTED, SERIES, distance_figure, map_figure
from report.lists import pictures_of
from report.page import Figures, Section, Table, write_page
from report.results import baseline_of, cells, find_results, main_result, result_tables, with_epoch_0
from report.run_files import CONTENT_FOLDER, CONTENT_TITLES, check_has_run, read_run
from utils.checkpoint import write_atomically
from utils.settings import flat

DISTANCES = {"across": "Distances, visible to infrared", "rgb": "Distances among visible",
             "ir": "Distances among infrared"}
COLOURS = {"baseline": MUTED, "prepare": SERIES[0], "finetune": SERIES[1]}      # of the CMC's lines


def save_stage_page(stage, state, run, tester, images):
    """Write a finished stage's part of the page, and the page, unless it is there already.

    Args: stage: "prepare" or "finetune"; state: `TrainState`, with an `evaluation` if the page is to be written;
        run: `Run`; tester: `Tester`; images: Modality -> `ImageBank` of the training images.
    """
    if state.evaluation is not None and run.processes.writes:
        save_report(run.output_dir, run.log, stage, lambda: stage_content(
            tester.data, tester.banks, tester.rank(state.evaluation), images, state.labels, state.linked),
            show=lambda content: run.events.show(stage, state.epoch - 1, pictures_of(content)))


def save_report(folder, log, name, make_content, run=None, show=lambda content: None):
    """Write what a finished stage shows and the run's page; an error becomes a warning in the log.

    Args: folder: OUTPUT_DIR; log: logger; name: "prepare", "finetune" or "test"; make_content: a function that gives
        the dict of report_data/NAME.json, `report.content.stage_content` or `retrieval_content`; run: folder of the
        run whose checkpoint was tested, whose page is renewed if it is one; show: function that is given that dict.
    """
    try:
        content = make_content()
        text = json.dumps(content).encode()
        write_atomically(Path(folder) / CONTENT_FOLDER / f"{name}.json", lambda file: file.write(text))
        log.info(f"page to look at: {write_run_page(folder)}")
        if run and (Path(run) / "metrics.jsonl").is_file():
            log.info(f"and of its run: {write_run_page(run)}")
        show(content)
    except Exception as error:      # no picture is worth a training run
        log.info(f"warning: the report could not be written ({type(error).__name__}: {error})")


def write_run_page(folder, figures_dir=None, only=(), all_stages=False):
    """Write FOLDER/report.html: its path.

    Args: folder: of a run; figures_dir: where figures go as PNG and PDF too, if set; only: words, of which a figure's
        name must hold one; all_stages: whether lists, map and clusters are shown of every stage, not of the last one.
    Raises: UserError: as `read_run` and `write_atomically`; no figure has such a name.
    """
    run, figures = read_run(folder), Figures()
    check_has_run(run)
    results, epochs = find_results(run), with_epoch_0(run)
    titled = [(CONTENT_TITLES[name], name, content) for name, content in run.contents.items()]
    clustered = [(title, content["clusters"]) for title, _, content in titled if "clusters" in content]
    shown = titled if all_stages else titled[:1]
    cross_epoch = run.config.get("METHOD", {}).get("CROSS_EPOCH")
    sections = [
        Section("results", "Results", "results.html", _results(results, figures)),
        Section("lists", "Ranked lists", "ranked_lists.html",
                [(title, content["tests"]) for title, _, content in shown]),
        Section("map", "Map", "embeddings.html",
                [(title, _embeddings(name, content, figures)) for title, name, content in shown]),
        Section("clusters", "Clusters", "clusters.html", clustered if all_stages else clustered[:1]),
        Section("training", "Losses and labels", "curves.html", figures.curves(
            lambda stage: stage_charts(epochs, stage, False, cross_epoch))),
        Section("details", "Details", "details.html", figures.curves(lambda stage: stage_charts(epochs, stage, True))),
        Section("data", "Data set", "table.html", _data_table(run.contents)),
        Section("settings", "Settings", "table.html", _settings_table(run))]
    path = write_page(run.folder / "report.html", f"Run {run.folder.resolve().name}", _subtitle(run), sections,
                      run.pictures(), _facts(run, results))
    if figures_dir:
        figures.save(figures_dir, only)
    return path


def _results(results, figures):
    """Choose what stands at the top of a run's page: the last stage's numbers as tiles, all results, CMC curves."""
    if not results:
        return None
    last = main_result(results)
    baseline = baseline_of(results, last.protocol) if last.stage != "baseline" else None
    tiles = [{**cell, "gain": cell["gain"] and f"{cell['gain']} to {baseline.name}"} for cell in cells(last, baseline)]
    spread = "± is the standard deviation over the trials. " if any(result.spread for result in results) else ""
    gain = (f"Small numbers below: the gain over {baseline.name}. " if baseline else "" if last.stage == "baseline" else
            "The untrained model was not tested here: python test.py without --resume_path does. ")
    cmc = [(result.protocol, "CMC", result.name, COLOURS.get(result.stage, SERIES[2 + index % 6]), result)
           for index, result in enumerate(results) if result.is_main]
    what = "; ".join(filter(None, (last.name, last.protocol, last.scored)))
    return {"tiles": tiles, "what": what, "note": f"Percent. {spread}{gain}", "tables": result_tables(results),
            "charts": figures.charts(cmc_charts(cmc))}


def _embeddings(name, content, figures):
    """Draw the map of the embeddings and the histograms of their distances: {"map", "tiles", "distances"}."""
    found = content["distances"]
    return {"map": figures.add(f"{name}_map", map_figure(**content["map"])), "tiles": content["map"]["tiles"],
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
    if not run.config:
        return None
    settings, defaults = flat(run.config), with_defaults({"METHOD.NAME": run.settings.get("METHOD.NAME", "")})
    changed = [(key, value, defaults.get(key, "–")) for key, value in settings.items() if value != defaults.get(key)]
    return Table(("key", "value", "default"), changed, 3, "Settings that differ from the defaults." if changed else
                 "All settings are the defaults.", Table(("key", "value"), list(settings.items()), 2, "All settings"))


def _facts(run, results):
    """Tell where the results come from: [(name, text or list of texts)], empty where nothing is known."""
    about = list(run.about.values())
    last = about[-1] if about else {}
    data = run.config.get("DATASET", {})
    trial = f", trial {data.get('TRIAL')}" if data.get("NAME") == "regdb" else ""
    seconds = sum(row.get("seconds", 0) for row in run.epochs)
    return [("Method", last.get("method")), ("Data set", f"{data.get('NAME', '')}{trial}"),
            ("Protocol", main_result(results).protocol if results else ""),
            ("Date", str(last.get("started", ""))[:16].replace("T", " ")), ("Commit", last.get("commit")),
            ("Versions", ", ".join(f"{name} {number}" for name, number in last.get("versions", {}).items())),
            ("Hardware", last.get("hardware")), ("Training time", _duration(seconds) if seconds else ""),
            ("Commands", [facts["command"] for facts in about])]


def _duration(seconds):
    """Write seconds as hours and minutes, minutes and seconds, or seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _subtitle(run):
    """Name the seed, how far each stage has come, and the folder."""
    last = {row["stage"]: row["epoch"] for row in run.epochs}
    epochs = ", ".join(f"{title} {last[stage]} epochs" for stage, title in STAGES.items() if stage in last)
    return " · ".join(filter(None, (f"seed {run.config.get('SEED', '?')}", epochs, str(run.folder))))
