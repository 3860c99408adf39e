"""The page of a run: RUN_DIR/report.html, one file with all curves, results and pictures; nothing is fetched.

    python -m utils.report RUN_DIR [--figures DIR]
    python -m utils.report RUN_DIR RUN_DIR ... [--output FILE] [--figures DIR]

The stages write the page of their run at their end; the first command writes it again, also during a run.
Several runs are compared on one page, FILE or FIRST_RUN_DIR/comparison.html. --figures writes every figure as PNG
and PDF.
"""
from utils.errors import Parser, exit_on_user_error, quoted


def main():
    """Write the page that the command line asks for. Raises UserError: a folder holds no sound run."""
    parser = Parser(__doc__)
    parser.prog = "python -m utils.report"
    parser.add_argument("folders", nargs="+", metavar="RUN_DIR")
    parser.add_argument("--output", help="the comparison's file")
    parser.add_argument("--figures", metavar="DIR", help="write the figures as PNG and PDF too")
    arguments = parser.parse_args()
    from utils.report.write import write_comparison_page, write_run_page  # slow: after the words were read
    from utils.structure import understood

    folders = arguments.folders
    with understood(f"one of the files of {' and '.join(map(quoted, folders))}", "Run the stages again"):
        path = (write_run_page(folders[0], arguments.figures) if len(folders) == 1 else
                write_comparison_page(folders, arguments.output, arguments.figures))
    print(f"written to {path}")


if __name__ == "__main__":
    exit_on_user_error(main)
