"""The page of a run: RUN_DIR/report.html, one file with all curves, results and pictures; nothing is fetched.

    python -m report RUN_DIR [--all_stages] [--figures DIR] [--only WORD ...]
    python -m report RUN_DIR RUN_DIR ... [--output FILE] [--figures DIR] [--only WORD ...]

The stages write the page of their run at their end; the first command writes it again, also during a run.
Several runs are compared on one page, FILE or FIRST_RUN_DIR/comparison.html. --figures writes figures as PNG and PDF:
all, or those whose names hold one of the words after --only, such as cmc or finetune_loss.
"""
from utils.errors import Parser, UserError, existing, exit_on_user_error, shown

RUN = existing("folder", "the OUTPUT_DIR of train_prepare.py, train_clip.py or test.py")


def main():
    """Write the page that the command line asks for. Raises UserError: a folder holds no sound run."""
    parser = Parser(__doc__)
    parser.prog = "python -m report"
    parser.add_argument("folders", nargs="+", metavar="RUN_DIR", type=RUN)
    parser.add_argument("--output", help="the comparison's file")
    parser.add_argument("--all_stages", action="store_true", help="lists, map and clusters of every stage")
    parser.add_argument("--figures", metavar="DIR", help="write figures as PNG and PDF too")
    parser.add_argument("--only", metavar="WORD", nargs="+", default=(), help="of the figures' names")
    arguments = parser.parse_args()
    from report.compare import write_comparison_page  # slow: after the words were read
    from report.write import write_run_page

    folders, only = arguments.folders, arguments.only
    if only and not arguments.figures:
        raise UserError("--only chooses figures to write; expected --figures DIR with it")
    path = (write_run_page(folders[0], arguments.figures, only, arguments.all_stages) if len(folders) == 1 else
            write_comparison_page(folders, arguments.output, arguments.figures, only))
    print(shown(f"written to {path}"))
    if arguments.figures:
        print(shown(f"figures written to {arguments.figures}"))


if __name__ == "__main__":
    exit_on_user_error(main)
