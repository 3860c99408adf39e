"""Writes the page of a run."""
import json
from pathlib import Path

from jinja2 import UndefinedError

from configs.defaults import with_defaults
from report.content import stage_content
from report.curves import STAGES, cmc_charts, stage_charts
from report.figures import MODALITY_NAMES, MUTED, SERIES, distance_figure, map_figure
from report.lists import drawn_lists, pictures_of
from report.page import Figures, Section, Table, write_page
from report.published import far_outside, method_name
from report.ranked import baseline_lists
from report.results import baseline_of, cells, find_results, legend, main_result, result_tables, with_epoch_0
from report.run_files import CONTENT_FOLDER, check_has_run, read_run
from utils.checkpoint import write_atomically
from utils.errors import UserError, quoted
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
            tester.data, tester.banks, tester.rank(state.evaluation), images, state.labels, state.linked,
            baseline_lists(run.output_dir)), show=lambda content: run.events.show(
                stage, state.epoch - 1, pictures_of(content)))


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
        log.info(f"report: {write_run_page(folder)} (open in a browser)")
        if run and (Path(run) / "metrics.jsonl").is_file():
            log.info(f"and of its run: {write_run_page(run)}")
        show(content)
    except Exception as error:      # no picture is worth a training run
        log.info(f"warning: the report could not be written ({type(error).__name__}: {error})")


def write_run_page(folder, figures_dir=None, only=(), titles=True):
    """Write FOLDER/report.html: its path.

    Args: folder: of a run; figures_dir: where figures go as PNG and PDF too, if set; only: words, of which a figure's
        name must hold one; titles: of the figures.
    Raises: UserError: as `read_run` and `write_atomically`; no figure has such a name; an earlier version made the run.
    """
    run, figures = read_run(folder), Figures()
    check_has_run(run)
    results, epochs, dataset = find_results(run), with_epoch_0(run), run.published_as
    cross_epoch = run.config.get("METHOD", {}).get("CROSS_EPOCH")
    shown = run.contents[0] if run.contents else {}
    of_training = next((content for content in run.contents if "clusters" in content), {})
    notes = {row["stage"]: " ".join(far_outside(dataset, row)) for row in run.epochs if row["epoch"] == 1}
    sections = [
        Section("results", "Results", "results.html", _results(run, results, figures)),
        Section("lists", "Ranked lists", "ranked_lists.html", shown.get("tests")),
        Section("map", "Map", "embeddings.html", _embeddings(shown, figures) if shown else None),
        Section("clusters", "Clusters", "clusters.html", of_training.get("clusters")),
        Section("training", "Losses and labels", "curves.html", figures.curves(
            lambda stage: stage_charts(epochs, stage, False, cross_epoch, dataset), notes)),
        Section("details", "Details", "details.html", figures.curves(lambda stage: stage_charts(epochs, stage, True))),
        Section("run", "This run", "run.html", _about(run, shown))]
    pictures = {name: data for content in (of_training, shown) for name, data in content.get("images", {}).items()}
    try:
        path = write_page(run.folder / "report.html", f"Run {run.folder.resolve().name}", _subtitle(run), sections,
                          pictures)
    except UndefinedError as error:
        raise UserError(f"{quoted(run.folder / CONTENT_FOLDER)} is of an earlier version ({error}); expected what this "
                        "one writes. Its report.html stays as it is; train again, or make the page with that version")
    if figures_dir:
        figures.by_name |= {f"lists_{test['mode']}_{kind}": picture for test in shown.get("tests", ())
                            for kind, picture in drawn_lists(test, shown["images"]).items()}
        figures.save(figures_dir, only, titles)
    return path


def _results(run, results, figures):
    """Choose what stands at the top of a run's page: the last stage's numbers as tiles, all results, CMC curves."""
    if not results:
        return None
    last = main_result(results)
    baseline = baseline_of(results, last.protocol) if last.stage != "baseline" else None
    tiles = [{**cell, "gain": cell["gain"] and f"{cell['gain']} over {baseline.name}"}
             for cell in cells(last, baseline)]
    gain = (f"Small numbers below: the gain over {baseline.name}." if baseline else "" if last.stage == "baseline" else
            "The untrained model was not tested here: python test.py without --resume_path does.")
    cmc = [(result.protocol, "CMC", legend(result, results, run.method),
            COLOURS.get(result.stage, SERIES[2 + index % 6]), result)
           for index, result in enumerate(results) if result.is_main]
    what = "; ".join(filter(None, (last.name, last.protocol, last.scored)))
    return {"tiles": tiles, "what": what, "note": f"Percent. {gain}",
            "tables": result_tables(results, run.published_as, run.method), "charts": figures.charts(cmc_charts(cmc))}


def _embeddings(shown, figures):
    """Draw the map of a content's embeddings and the histograms of distances: {"map", "tiles", "distances"}."""
    found = shown["distances"]
    return {"map": figures.add("map", map_figure(**shown["map"])), "tiles": shown["map"]["tiles"],
            "distances": [figures.add(f"distances_{key}", distance_figure(title, found["edges"], **found[key]))
                          for key, title in DISTANCES.items()]}


def _about(run, shown):
    """Collect where the results come from: {"facts": (name, text) pairs, "commands", "data", "changed", "settings"}."""
    about = list(run.about.values())
    last = about[-1] if about else {}
    seconds = sum(row.get("seconds", 0) for row in run.epochs)
    facts = [("Date", str(last.get("started", ""))[:16].replace("T", " ")), ("Commit", last.get("commit")),
             ("Hardware", last.get("hardware")), ("Training time", _duration(seconds) if seconds else ""),
             ("Folder", str(run.folder)),
             ("Versions", ", ".join(f"{name} {number}" for name, number in last.get("versions", {}).items()))]
    settings, defaults = flat(run.config), with_defaults({"METHOD.NAME": run.settings.get("METHOD.NAME", "")})
    changed = [(key, value, defaults.get(key, "–")) for key, value in settings.items() if value != defaults.get(key)]
    data = [(f"{row['split']}, {MODALITY_NAMES[row['modality']]}",
             ", ".join(f"camera {camera}: {count:,}" for camera, count in row["cameras"].items()),
             f"{row['persons']:,}", f"{row['images']:,}") for row in shown.get("data", ())]
    return {"facts": [fact for fact in facts if fact[1]], "commands": [facts["command"] for facts in about],
            "data": Table(("split", "images per camera", "persons", "images"), data, 2), "changed": changed,
            "settings": Table(("key", "value"), list(settings.items()), 2)}


def _duration(seconds):
    """Write seconds as hours and minutes, minutes and seconds, or seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _subtitle(run):
    """Name method, data set and seed, and how far each stage has come."""
    data = run.config.get("DATASET", {})
    trial = f" trial {data.get('TRIAL')}" if data.get("NAME") == "regdb" else ""
    last = {row["stage"]: row["epoch"] for row in run.epochs}
    epochs = ", ".join(f"{title} {last[stage]} epoch{'s' * (last[stage] > 1)}"
                       for stage, title in STAGES.items() if stage in last)
    return " · ".join(filter(None, (method_name(run.method), f"{data.get('NAME', '')}{trial}",
                                    f"seed {run.config.get('SEED', '?')}", epochs)))
