"""Writes the page of a run, and that which compares several."""
import json
from datetime import timedelta
from pathlib import Path

from configs.defaults import with_defaults
from report.content import stage_content
from report.curves import STAGES, cmc_charts, comparison_charts, distance_chart, stage_charts
from report.figures import Figures, chart_figure, map_figure
from report.lists import baseline_lists, drawn_lists, pictures_of
from report.page import Section, write_page
from report.paired import INTERVAL, compare, group_runs
from report.published import far_outside, method_name
from report.results import (
    TRAINED,
    averaged,
    baseline_of,
    cells,
    compared_tables,
    find_results,
    main_result,
    result_tables,
)
from report.run_files import CONTENT_FOLDER, read_finished
from utils.checkpoint import write_atomically
from utils.errors import UserError
from utils.settings import flat


def save_stage_page(stage, state, run, tester, images):
    """Write a finished stage's part of the page, and the page, unless it is there already.

    Args: stage: "prepare" or "finetune"; state: `TrainState`, with an `evaluation` if the page is to be written;
        run: `Run`; tester: `Tester`; images: Modality -> `ImageBank` of the training images.
    """
    if state.evaluation is not None and run.processes.writes:
        save_report(run.output_dir, run.log, stage, lambda: stage_content(
            tester.data, tester.banks, tester.rank(state.evaluation), images, state.labels, state.linked,
            baseline_lists(run.output_dir)), show=lambda content: run.events.add(
                stage, state.epoch - 1, {}, pictures=pictures_of(content)))


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


def write_run_page(folder, figures_dir=None, titles=True):
    """Write FOLDER/report.html: its path.

    Args: folder: of a run; figures_dir: where figures go as PNG and PDF too, if set; titles: of the figures.
    Raises: UserError: as `read_finished` and `write_atomically`.
    """
    [run], figures = read_finished([folder]), Figures()
    results, dataset = find_results(run), run.published_as
    shown = run.contents[0] if run.contents else {}
    of_training = next((content for content in run.contents if "clusters" in content), {})
    notes = {row["stage"]: far_outside(dataset, row) for row in run.epochs if row["epoch"] == 1}
    cross_epoch = run.config.get("METHOD", {}).get("CROSS_EPOCH", 0)
    sections = [
        Section("results", "Results", "results.html", results and _results(run, results, figures)),
        Section("lists", "Ranked lists", "ranked_lists.html", shown.get("tests")),
        Section("map", "Features", "embeddings.html", shown and {
            "map": figures.add("map", map_figure(shown["map"])),
            "distances": _drawn(figures, [distance_chart(shown["distances"])])}),
        Section("clusters", "Clusters", "clusters.html", of_training.get("clusters")),
        Section("training", "Losses and labels", "curves.html", _curves(
            figures, lambda stage: stage_charts(run.epochs, stage, cross_epoch, dataset), notes)),
        Section("run", "This run", "run.html", _about(run))]
    pictures = {name: data for content in (of_training, shown) for name, data in content.get("images", {}).items()}
    path = write_page(run.folder / "report.html", f"Run {run.folder.resolve().name}", _subtitle(run), sections,
                      pictures)
    if figures_dir:
        figures |= {f"lists_{test['mode']}": drawn_lists(test, shown["images"]) for test in shown.get("tests", ())}
        figures.save(figures_dir, titles)
    return path


def _results(run, results, figures):
    """Choose what stands at the top of a run's page: the last stage's numbers as tiles, all results, CMC curves."""
    last, method = main_result(results), run.known("method")
    baseline = baseline_of(results, last)
    tiles = [{**cell, "gain": cell["gain"] and f"{cell['gain']} over {baseline.name}"}
             for cell in cells(last, baseline)]
    gain = (f"Small numbers below: the gain over {baseline.name}." if baseline else "" if last.stage == "baseline" else
            "The untrained model was not tested here: python test.py without --resume_path does.")
    names = {"prepare": f"{method_name(method)}, without texts", "finetune": method_name(method)} if method else {}
    if last.stage == "prepare":
        names["prepare"] = names.get("finetune", last.name)
    cmc = [("CMC", names.get(result.stage, result.name), result) for result in results if result.is_main]
    return {"tiles": tiles, "what": "; ".join(filter(None, (last.name, last.protocol, last.scored))),
            "note": f"Percent. {gain}", "tables": result_tables(results, run.published_as, method),
            "charts": _drawn(figures, cmc_charts(cmc))}


def _curves(figures, make_charts, notes):
    """Draw the curves of each script: {its name: {"notes", "charts": SVG texts, "more": those that are folded away}}.

    Args: make_charts: function of a stage that gives `Chart`s; notes: stage -> sentences on its curves.
    """
    scripts = {}
    for stage, title in STAGES.items():
        script = scripts.setdefault(title.partition(",")[0], {"notes": [], "charts": [], "more": []})
        script["notes"] += notes.get(stage, [])
        charts = make_charts(stage)
        script["charts"] += _drawn(figures, [chart for chart in charts if not chart.detail])
        script["more"] += _drawn(figures, [chart for chart in charts if chart.detail])
    return {title: script for title, script in scripts.items() if any(script.values())}


def _drawn(figures, charts):
    return [figures.add(chart.name, chart_figure(chart)) for chart in charts]


def _about(run):
    """Collect where the results come from: {"facts": (name, text) pairs, "commands", "changed", "settings"}."""
    about = list(run.about.values())
    last = about[-1] if about else {}
    seconds = round(sum(row.get("seconds", 0) for row in run.epochs))
    facts = [("Date", str(last.get("started", ""))[:16].replace("T", " ")), ("Commit", last.get("commit")),
             ("Hardware", last.get("hardware")), ("Training time", seconds and f"{timedelta(seconds=seconds)} h"),
             ("Folder", str(run.folder)),
             ("Versions", ", ".join(f"{name} {number}" for name, number in last.get("versions", {}).items()))]
    settings, defaults = flat(run.config), with_defaults({"METHOD.NAME": run.settings.get("METHOD.NAME", "")})
    changed = [(key, value, defaults.get(key, "–")) for key, value in settings.items() if value != defaults.get(key)]
    return {"facts": [fact for fact in facts if fact[1]], "commands": [facts["command"] for facts in about],
            "changed": changed, "settings": list(settings.items())}


def _subtitle(run):
    """Name method, data set and seed."""
    data = run.config.get("DATASET", {})
    trial = f" trial {data.get('TRIAL')}" if data.get("NAME") == "regdb" else ""
    return " · ".join(filter(None, (method_name(run.known("method")), f"{data.get('NAME', '')}{trial}",
                                    f"seed {run.config.get('SEED', '?')}")))


def write_comparison_page(folders, output=None, figures_dir=None, titles=True):
    """Write one page that compares several runs: its path. Those that differ in seed or trial alone share a line.

    Args: folders: of the runs; output: the file, FIRST_FOLDER/comparison.html if not set; figures_dir, titles: as
        `write_run_page`.
    Raises: UserError: as there.
    """
    runs, figures = read_finished(folders), Figures()
    groups = {f"{name} (n = {len(group)})": group for name, group in group_runs(runs).items()}
    results = {name: averaged([find_results(run) for run in group]) for name, group in groups.items()}
    cmc = [(TRAINED.get(result.stage, result.name), name, result)
           for name, found in results.items() for result in found if result.is_main]
    differences = f"Small numbers below: the difference to {next(iter(groups))}. " if len(groups) > 1 else ""
    tables, note = compared_tables(results), (f"{differences}± is the standard deviation (n − 1) over what each row "
                                              "says. Numbers of different protocols do not compare.")
    epochs = {name: [run.epochs for run in group] for name, group in groups.items()}
    sections = [
        Section("paired", "Is it better?", "paired.html", _paired(groups)),
        Section("results", "Results", "results.html", tables and {
            "tiles": [], "note": note, "tables": tables, "charts": _drawn(figures, cmc_charts(cmc))}),
        Section("training", "Losses and labels", "curves.html",
                _curves(figures, lambda stage: comparison_charts(epochs, stage), {}))]
    path = write_page(Path(output) if output else Path(folders[0]) / "comparison.html",
                      f"Comparison of {len(runs)} runs", " · ".join(groups), sections)
    if figures_dir:
        figures.save(figures_dir, titles)
    return path


def _paired(groups):
    """Compare each group with the first: {"note", "groups": name -> lines}, or why it cannot be; None of one group."""
    (name, first), *others = groups.items()
    found = {}
    for other, group in others:
        try:
            found[other] = list(map(str, compare(first, group)))
        except UserError as error:
            found[other] = [f"not compared: {error}"]
    note = f"Paired differences to {name} in percentage points, {INTERVAL}."
    return {"note": note, "groups": found} if others else None
