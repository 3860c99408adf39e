"""The command line of the three scripts. Imports nothing slow, so that --help and a misspelt flag answer at once."""
from utils.errors import Parser, UserError


def parse_arguments(description, switches=None, **options):
    """Read the command line that all scripts share: [--config_file FILE] [switches] [options] [KEY VALUE ...].

    Args: switches: name -> help of flags without a value; options: name -> help of flags with one.
    """
    parser = Parser(description)
    parser.add_argument("--config_file", help="a .yml file with settings that differ from the defaults")
    for name, help_text in options.items():
        parser.add_argument(f"--{name}", help=help_text)
    for name, help_text in (switches or {}).items():
        parser.add_argument(f"--{name}", action="store_true", help=help_text)
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE",
                        help="single settings, as in SEED 2 TEST.MODE indoor")
    arguments = parser.parse_intermixed_args()
    for name in ("config_file", *options):
        if getattr(arguments, name) == "":
            raise UserError(f"--{name} is empty; expected a file. Leave the option out to do without")
    return arguments
