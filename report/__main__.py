"""The page of a run: RUN_DIR/report.html, one file with all curves, results and pictures; nothing is fetched.

    python -m report RUN_DIR [--figures DIR] [--no_titles]
    python -m report RUN_DIR RUN_DIR ... [--output FILE] [--figures DIR] [--no_titles]

The stages write the page of their run at their end; the first command writes it again, also during a run.
Several runs are compared on one page, FILE or FIRST_RUN_DIR/comparison.html. --figures writes figures as PNG and PDF,
ranked lists too; --no_titles leaves titles to the caption of a paper.
"""
from utils.errors import Parser, existing, exit_on_user_error, shown

RUN = existing("folder", "the OUTPUT_DIR of train_prepare.py, train_clip.py or test.py")


def main():
    """Write the page that the command line asks for. Raises UserError: a folder holds no sound run."""
    parser = Parser(__doc__)
    parser.prog = "python -m report"
    parser.add_argument("folders", nargs="+", metavar="RUN_DIR", type=RUN)
    parser.add_argument("--output", help="the comparison's file")
    parser.add_argument("--figures", metavar="DIR", help="write figures as PNG and PDF too")
    parser.add_argument("--no_titles", action="store_true", help="leave out the figures' titles")
    arguments = parser.parse_args()
    from report.write import write_comparison_page, write_run_page  # slow: after the words were read

    folders, how = arguments.folders, (arguments.figures, not arguments.no_titles)
    path = (write_run_page(folders[0], *how) if len(folders) == 1 else
            write_comparison_page(folders, arguments.output, *how))
    print(shown(f"written to {path}" + (f"\nfigures written to {arguments.figures}" if arguments.figures else "")))


if __name__ == "__main__":
    exit_on_user_error(main)
