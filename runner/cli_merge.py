"""`degrade merge` on the command line."""

import argparse
from pathlib import Path

from runner.cli_parser import LOG_LEVELS


def build_merge_parser() -> argparse.ArgumentParser:
    """What the command line of `degrade merge` looks like."""
    parser = argparse.ArgumentParser(
        prog="degrade merge",
        description="Join the results files of shards, or copies of a file that were continued apart, to the files "
        "that one run would have written, in the order of the plan. Every checksum is checked, and records that are "
        "there more than once are compared. Needs no model; the files given stay as they are.",
        epilog="exit codes: 0 joined, though records may be missing, which is told; 2 the files are not of one study; "
        "3 a file cannot be read or written, is damaged, in use or of a newer degrade, or two records of one key "
        "differ",
    )
    parser.add_argument("results", nargs="+", type=Path, metavar="FILE",
                        help="results files of one study, of one or more methods, their sidecars beside them; "
                        "a merged file may be among them")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: the folder of the first file")
    parser.add_argument("--log-level", default="INFO", choices=LOG_LEVELS)
    return parser


def merge(options: argparse.Namespace) -> int:
    """Do what the command line asks for; the exit code."""
    from runner import cli_console, results_merge

    cli_console.set_up_logging(options.log_level)
    results_merge.merge(options.results, options.out, cli_console.print_line)
    return 0
