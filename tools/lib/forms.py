"""The forms of a table of runs: text, CSV and LaTeX."""
import csv
import io
import re

from report.run_files import NUMBERS
from tools.lib.summary import BEST, LAST, LOGGED, STAGES, UNSTATED

SHOWN = {"rank1": "Rank-1", "rank10": "Rank-10", "rank20": "Rank-20", "mAP": "mAP", "mINP": "mINP"}     # in LaTeX
IN_TEXT = ("rank1", "mAP", "mINP")
MODES = {"all": "All-search", "indoor": "Indoor-search", "v2t": "Visible to infrared", "t2v": "Infrared to visible"}
# Behind the end of a row LaTeX would take [ and * for its options.
ESCAPES = {**{c: rf"\{c}" for c in "{}$&#%_"}, **{c: f"{{{c}}}" for c in "[*"}, "\\": r"\textbackslash{}",
           "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "–": "--", "±": r"$\pm$", "−": "$-$"}
DAGGER = r"$^\dagger$"


def _columns(rows, names, kinds=(LAST, BEST)):
    """List the (kind, name) pairs of a table's columns; what was logged stands last."""
    logged = dict.fromkeys(key for row in rows for key in row.numbers if key[0] == LOGGED)
    return [*((kind, name) for kind in kinds for name in names), *logged]


def _notes(rows):
    """Write rows of published figures that have no column, a sentence each."""
    return [f"{row.source}: {', '.join(f'{SHOWN[name]} {mean}' for (_, name), (mean, _) in row.numbers.items())} "
            f"({row.stage}, mode {row.mode})" for row in rows]


def as_text(rows):
    """Format the table for a console."""
    columns = _columns(rows, IN_TEXT)
    lines = [["method", "stage", "mode", "n", *(SHOWN.get(name, name) for _, name in columns)]]
    for row in rows:
        if row.numbers.keys() & set(columns):
            method = f"{row.method}: {row.source.rpartition(', ')[0]}" if row.source else row.method
            cells = []
            for key in columns:
                mean, deviation = row.numbers.get(key, (None, None))
                cells.append("–" if mean is None else f"{mean:.2f}")
                if deviation is not None:
                    cells[-1] += f" ± {deviation:.2f}"
            lines.append([method, row.stage, row.mode, str(row.n), *cells])
    widths = [max(map(len, cells)) for cells in zip(*lines)]
    group = sum(widths[4:7]) + 4
    above = " " * (sum(widths[:4]) + 8) + "".join(f"{title:^{group}}  " for title in (LAST, BEST))
    text = ["  ".join(f"{cell:{'<' if i < 3 else '>'}{width}}" for i, (cell, width) in enumerate(zip(line, widths)))
            for line in lines]
    return "\n".join([above.rstrip(), *text, "", "percent, mean ± standard deviation (n - 1) over n runs",
                      *dict.fromkeys(f"{row.mode}: {row.protocol}" for row in rows if row.protocol),
                      *_notes([row for row in rows if any(kind == UNSTATED for kind, _ in row.numbers)]), ""])


def as_csv(rows):
    """Format all numbers as CSV: a mean and a standard deviation each."""
    text, columns = io.StringIO(), _columns(rows, NUMBERS, (LAST, BEST, UNSTATED))
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["method", "stage", "mode", "protocol", "n", "source",
                    *(f"{kind} {name}{part}" for kind, name in columns for part in ("", " sd"))])
    for row in rows:
        table.writerow([row.method, row.stage, row.mode, row.protocol, row.n, row.source,
                        *("" if value is None else f"{value:.4f}" for key in columns
                          for value in row.numbers.get(key, (None, None)))])
    return text.getvalue()


def as_latex(rows):
    """Format the table of a paper for LaTeX with booktabs: a line a method, its last stage, the modes side by side.

    Our numbers are of the last epoch. Beside published ones, which are best on test, stands our best on test too. The
    best of a column is bold, a column without a number is left out, and a dagger marks what was chosen on test data.
    """
    theirs, ours = _methods([row for row in rows if row.source]), _methods([row for row in rows if not row.source])
    ours = {(label, kind): found for (label, kind), found in ours.items()
            if kind == LAST or theirs or (label, LAST) not in ours}
    lines, logged = [*theirs.items(), *ours.items()], [key for key in _columns(rows, ()) if key[0] == LOGGED]
    groups, best = {}, {}
    for mode, title in MODES.items():
        for key in ((mode, name) for name in SHOWN):
            if numbers := [found[key][0] for _, found in lines if key in found]:
                groups.setdefault(title, []).append(key)
                if len(numbers) > 1:
                    best[key] = max(numbers)
    columns = [key for names in groups.values() for key in names] + logged
    body = [_line([escaped(label) + DAGGER * (kind == BEST),
                   *(_cell(found.get(key), best.get(key)) for key in columns)]) for (label, kind), found in lines]
    spans, first = [], 2
    for names in groups.values():
        spans.append(rf"\cmidrule(lr){{{first}-{first + len(names) - 1}}}")
        first += len(names)
    head = [_line(["", *(rf"\multicolumn{{{len(names)}}}{{c}}{{{title}}}" for title, names in groups.items()),
                   *[""] * len(logged)]), " ".join(spans),
            _line(["Method", *(escaped(SHOWN.get(name, name)) for _, name in columns)])]
    notes = [f"{DAGGER}Best epoch, chosen on test data."] * any(kind == BEST for (_, kind), _ in lines)
    return "\n".join([
        r"% \usepackage{booktabs}",
        *(f"% {note}" for note in _notes([row for row in rows if row.source and row.mode not in MODES])),
        r"{\footnotesize\setlength{\tabcolsep}{2pt}%", rf"\begin{{tabular}}{{@{{}}l{'c' * len(columns)}@{{}}}}",
        r"\toprule", *head, r"\midrule", *body[:len(theirs)], *[r"\midrule"] * bool(theirs), *body[len(theirs):],
        r"\bottomrule", r"\end{tabular}\par\smallskip",
        r"\raggedright " + " ".join(notes + [escaped(note) for note in _footnotes(rows)]) + r"\par}", ""])


def _methods(rows):
    """Collect the lines of a paper's table: (label, LAST or BEST) -> {(mode, name): (mean, standard deviation)}.

    Of each method the last stage counts; what was logged stands by its own key.
    """
    stages, lines = ["–", *STAGES.values()], {}
    last = {method: max(stages.index(row.stage) for row in rows if row.method == method)
            for method in dict.fromkeys(row.method for row in rows)}
    for row in rows:
        if row.mode in MODES and stages.index(row.stage) == last[row.method]:
            for (kind, name), number in row.numbers.items():
                if kind == LOGGED:
                    lines[next(key for key in lines if key[0] == row.method)].setdefault((kind, name), number)
                elif kind != UNSTATED and name in SHOWN:
                    lines.setdefault((row.method, kind), {})[row.mode, name] = number
    return lines


def _line(cells):
    return " & ".join(cells) + r" \\"


def _cell(number, best):
    """Write a mean and its deviation. Args: number: both, or None; best: the greatest mean, which is bold, or None."""
    if number is None:
        return "--"
    text, deviation = f"{number[0]:.2f}", number[1]
    text = rf"\textbf{{{text}}}" if best is not None and text == f"{best:.2f}" else text
    return text if deviation is None else rf"{text}{{\tiny$\pm${deviation:.1f}}}"


def _footnotes(rows):
    """List what stands below a paper's table: how many runs, the protocols, the sources."""
    counts = {f"{row.method} {MODES.get(row.mode, row.mode)}": row.n for row in rows if not row.source}
    said = (f"{max(counts.values())} runs" if len(set(counts.values())) == 1 else
            "runs: " + ", ".join(f"{what} {n}" for what, n in counts.items()))
    notes = [f"Percent, mean ± standard deviation over {said}." if max(counts.values()) > 1 else "Percent, one run."]
    notes += [f"{title}: {row.protocol}." for mode, title in MODES.items() for row in rows
              if row.mode == mode and row.protocol]
    notes += [f"{row.method}: {row.source}." for row in rows if row.source and row.mode in MODES]
    return dict.fromkeys(notes)


def escaped(text):
    """Write a text so that LaTeX prints its characters."""
    return re.sub(r"[{}$&#%_\[*\\^~–±−]", lambda found: ESCAPES[found[0]], text)


FORMS = {"text": as_text, "csv": as_csv, "latex": as_latex}
