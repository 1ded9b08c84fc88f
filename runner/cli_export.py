"""`degrade export` on the command line."""

import argparse
from pathlib import Path

from runner.cli_parser import LOG_LEVELS


def build_export_parser() -> argparse.ArgumentParser:
    """What the command line of `degrade export` looks like."""
    parser = argparse.ArgumentParser(
        prog="degrade export",
        description="Write the damaged checkpoint of a record: safetensors, configuration, tokenizer, and what it is. "
        "Other programs load the folder as any model (transformers, vLLM, lm-evaluation-harness). The digest of the "
        "damaged weights is that of the records, or nothing is written.",
        epilog="exit codes: 0 written; 2 --where does not name exactly one condition, and those that there are are "
        "listed; 3 the folder is not empty, the model cannot be had or is another; others as for degrade. What a crash "
        "leaves is a hidden folder .FOLDER.*.tmp beside FOLDER, which can be deleted.",
    )
    parser.add_argument("results", type=Path, metavar="RESULT", help="a results file, its sidecar beside it")
    parser.add_argument("--where", default="", metavar="CONDITION",
                        help="key=value words with the keys sweep, method, group, level and repeat, as many as name "
                        'one condition: "sweep=gauss_mlp level=0.3 repeat=0"')  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new, or empty")
    parser.add_argument("--device", metavar="auto|cpu|cuda|cuda:N", help="instead of the spec's model.device")
    parser.add_argument("--log-level", default="INFO", choices=LOG_LEVELS)
    return parser


def export(options: argparse.Namespace) -> int:
    """Do what the command line asks for; the exit code."""
    from runner.run_condition import Where

    where = Where.parse(options.where)  # before torch is imported, which takes its time
    from runner import cli_console, model_load, run_export

    cli_console.set_up_logging(options.log_level)
    model_load.quieten()
    facts = run_export.export(options.results, where, options.out, options.device)
    cli_console.print_line(f"{options.out}: weights_digest {facts['weights_digest']}, as recorded")
    return 0
