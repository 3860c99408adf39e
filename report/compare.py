"""Writes the page that compares several runs; those that differ in their seed or trial alone are put together."""
from dataclasses import replace
from pathlib import Path

import numpy as np

from configs.groups import distinct_names
from report.curves import cmc_charts, comparison_charts
from report.figures import SERIES
from report.page import Figures, Section, Table, write_page
from report.paired import HEAD, INTERVAL, compare, group_runs
from report.results import TRAINED, compared_tables, find_results, with_epoch_0
from report.run_files import check_has_run, read_run
from utils.errors import UserError
from utils.settings import differing_keys


def write_comparison_page(folders, output=None, figures_dir=None, only=(), titles=True):
    """Write one page that compares several runs: its path. Runs of one group share a line, the mean.

    Args: folders: of the runs; output: the file, FIRST_FOLDER/comparison.html if not set; figures_dir, only, titles: as
        `report.write.write_run_page`.
    Raises: UserError: as there.
    """
    runs = [read_run(folder) for folder in {Path(each).resolve(): each for each in folders}.values()]
    figures = Figures()
    for run in runs:
        check_has_run(run)
    groups = {f"{name} (n = {len(group)})": group for name, group in group_runs(runs).items()}
    results = {name: [find_results(run) for run in group] for name, group in groups.items()}
    tables = compared_tables(results)
    cmc = [(result.protocol, TRAINED.get(result.stage, result.name), name, SERIES[index % len(SERIES)], result)
           for index, (name, of) in enumerate(results.items()) for result in _mean_cmc(of)]
    differences = f"Small numbers below: the difference to {next(iter(groups))}. " if len(groups) > 1 else ""
    note = (f"{differences}± is the standard deviation (n − 1) over what each row says. Numbers of different "
            "protocols do not compare.")
    epochs = {name: [with_epoch_0(run) for run in group] for name, group in groups.items()}
    curves, details = (figures.curves(lambda stage, detail=detail: comparison_charts(epochs, stage, detail))
                       for detail in (False, True))
    sections = [
        Section("paired", "Is it better?", "table.html", _paired_table(groups)),
        Section("results", "Results", "results.html", {"tiles": [], "note": note, "tables": tables, "charts":
                figures.charts(cmc_charts(cmc))} if tables else None),
        Section("differences", "Settings that differ", "table.html", _differences_table(runs)),
        Section("training", "Losses and labels", "curves.html", curves),
        Section("details", "Details", "details.html", details)]
    path = write_page(Path(output) if output else Path(folders[0]) / "comparison.html",
                      f"Comparison of {len(runs)} runs", " · ".join(groups), sections)
    if figures_dir:
        figures.save(figures_dir, only, titles)
    return path


def _mean_cmc(results):
    """Average the CMC curves of a group's runs. Args: results: a list of `Result` of each. Returns: [`Result`]."""
    found = {}
    for result in (result for of in results for result in of if result.is_main and result.cmc):
        found.setdefault((result.protocol, result.stage), []).append(result)
    return [replace(same[0], cmc=tuple(np.mean([result.cmc for result in same], axis=0))) for same in found.values()]


def _paired_table(groups):
    """Compare each group with the first: a `Table`, which says of those that cannot be compared why; None of one."""
    (name, first), *others = groups.items()
    rows, reasons = [], []
    for other, group in others:
        try:
            rows += [(other, *row.cells()) for row in compare(first, group)]
        except UserError as error:
            reasons.append(f"{other} is not compared: {error}.")
    note = " ".join([f"Paired differences to {name} in percentage points, {INTERVAL}."] * bool(rows) + reasons)
    return Table(("runs", *HEAD), rows, 3, note) if others else None


def _differences_table(runs):
    """List the settings that are not the same in all runs."""
    settings = [run.settings for run in runs]
    rows = [(key, *(config.get(key, "–") for config in settings)) for key in differing_keys(settings)]
    names = distinct_names([run.folder.resolve() for run in runs])
    return Table(("key", *names), rows, 1 + len(runs), "" if rows else "None.")
