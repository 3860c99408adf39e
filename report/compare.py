"""Writes the page that compares several runs; those that differ in their seed alone are put together."""
from pathlib import Path

from configs.groups import REPEATS, group_names, refuse_twins
from report.curves import cmc_charts, comparison_charts
from report.figures import SERIES
from report.page import Figures, Section, Table, write_page
from report.results import TRAINED, compared_tables, find_results, with_epoch_0
from report.run_files import check_has_run, read_run
from utils.settings import differing_keys


def write_comparison_page(folders, output=None, figures_dir=None, only=(), titles=True):
    """Write one page that compares several runs: its path. Runs that differ in their seed alone share a line, the mean.

    Args: folders: of the runs; output: the file, FIRST_FOLDER/comparison.html if not set; figures_dir, only, titles: as
        `report.write.write_run_page`.
    Raises: UserError: as there.
    """
    runs, figures = _named_runs(folders), Figures()
    groups = group_runs(runs)
    tables = compared_tables({name: [find_results(run) for run in group] for name, group in groups.items()})
    cmc = [(result.protocol, TRAINED.get(result.stage, result.name), name, SERIES[index % len(SERIES)], result)
           for index, (name, run) in enumerate(runs.items()) for result in find_results(run) if result.is_main]
    differences = f"Small numbers below: the difference to {next(iter(groups))}. " if len(groups) > 1 else ""
    note = (f"{differences}± is the standard deviation (n − 1) over what each row says. Numbers of different "
            "protocols do not compare.")
    epochs = {name: [with_epoch_0(run) for run in group] for name, group in groups.items()}
    curves, details = (figures.curves(lambda stage, detail=detail: comparison_charts(epochs, stage, detail))
                       for detail in (False, True))
    sections = [
        Section("results", "Results", "results.html", {"tiles": [], "note": note, "tables": tables, "charts":
                figures.charts(cmc_charts(cmc))} if tables else None),
        Section("differences", "Settings that differ", "table.html", _differences_table(runs)),
        Section("training", "Losses and labels", "curves.html", curves),
        Section("details", "Details", "details.html", details)]
    path = write_page(Path(output) if output else Path(folders[0]) / "comparison.html",
                      f"Comparison of {len(runs)} runs", " · ".join(runs), sections)
    if figures_dir:
        figures.save(figures_dir, only, titles)
    return path


def group_runs(runs):
    """Group runs (name -> `RunFiles`) by their settings: label -> [`RunFiles`], in the order of the runs.

    Where no two runs belong together, so that there is nothing to average, each has a group with its own name.
    """
    known = {name: run for name, run in runs.items() if run.settings}
    varied = {key for run in known.values() for key in run.varied} - set(REPEATS)
    labels = dict(zip(known, group_names([run.settings for run in known.values()], varied)))
    refuse_twins({run.folder: (labels[name], run.settings) for name, run in known.items()})
    groups = {}
    for name, run in runs.items():
        groups.setdefault(labels.get(name, name), []).append(run)       # settings that are not known are not the same
    if len(groups) == len(runs):
        return {name: [run] for name, run in runs.items()}
    return {f"{label} (n = {len(group)})": group for label, group in groups.items()}


def _named_runs(folders):
    """Read several runs: a name of its own for each -> `RunFiles`."""
    runs = {}
    for folder in folders:
        run = read_run(folder)
        check_has_run(run)
        names = run.folder.resolve().name, str(run.folder), f"{run.folder} ({len(runs) + 1})"
        runs[next(name for name in names if name not in runs)] = run
    return runs


def _differences_table(runs):
    """List the settings that are not the same in all runs."""
    settings = [run.settings for run in runs.values()]
    rows = [(key, *(config.get(key, "–") for config in settings)) for key in differing_keys(settings)]
    return Table(("key", *runs), rows, 1 + len(runs), "" if rows else "None.")
