"""The page of a run: RUN_DIR/report.html, one file with all curves, results and pictures; nothing is fetched.

    python -m report RUN_DIR [--figures DIR] [--only WORD ...] [--no_titles]
    python -m report RUN_DIR RUN_DIR ... [--output FILE] [--figures DIR] [--only WORD ...] [--no_titles]

The stages write the page of their run at their end; the first command writes it again, also during a run.
Several runs are compared on one page, FILE or FIRST_RUN_DIR/comparison.html. --figures writes figures as PNG and PDF:
all, ranked lists too, or those whose names hold one of the words after --only, such as cmc or finetune_loss;
--no_titles leaves titles to the caption of a paper.
"""
from utils.errors import Parser, UserError, existing, exit_on_user_error, shown

RUN = existing("folder", "the OUTPUT_DIR of train_prepare.py, train_clip.py or test.py")


def main():
    """Write the page that the command line asks for. Raises UserError: a folder holds no sound run."""
    parser = Parser(__doc__)
    parser.prog = "python -m report"
    parser.add_argument("folders", nargs="+", metavar="RUN_DIR", type=RUN)
    parser.add_argument("--output", help="the comparison's file")
    parser.add_argument("--figures", metavar="DIR", help="write figures as PNG and PDF too")
    parser.add_argument("--only", metavar="WORD", nargs="+", default=(), help="of the figures' names")
    parser.add_argument("--no_titles", action="store_true", help="leave out the figures' titles")
    arguments = parser.parse_args()
    from report.compare import write_comparison_page  # slow: after the words were read
    from report.write import write_run_page

    folders, only = arguments.folders, arguments.only
    titles = not arguments.no_titles
    if (only or not titles) and not arguments.figures:
        raise UserError("--only and --no_titles are of figures to write; expected --figures DIR with them")
    path = (write_run_page(folders[0], arguments.figures, only, titles) if len(folders) == 1 else
            write_comparison_page(folders, arguments.output, arguments.figures, only, titles))
    print(shown(f"written to {path}"))
    if arguments.figures:
        print(shown(f"figures written to {arguments.figures}"))


if __name__ == "__main__":
    exit_on_user_error(main)
