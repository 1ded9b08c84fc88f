"""The command lines of `degrade` and its sub-commands `verify`, `check` and `report`, and their help."""

import argparse
import os
from pathlib import Path

LOG_LEVELS = ("DEBUG", "INFO", "WARNING")

DESCRIPTION = "Damage a language model on purpose, step by step, and record how its language breaks down."
EPILOG = """\
degrade verify RESULT [RESULT ...]: damage again and compare digests, generate nothing; see degrade verify --help
degrade check RESULT [RESULT ...]: is every record whole, and as the sidecar says; see degrade check --help
degrade merge RESULT [RESULT ...]: join the files of shards; see degrade merge --help
degrade localize SPEC: score the units of the intact model, for sweeps to choose by; see degrade localize --help
degrade report RESULT [RESULT ...]: tables, figures and one page from results files; see degrade report --help
degrade export RESULT --where CONDITION --out FOLDER: a damaged checkpoint for other programs; see degrade export --help
degrade lm_eval --model degrade --model_args spec=SPEC,...: a condition in lm-evaluation-harness; see specs/README.md

exit codes: 0 done; 1 an error that nobody foresaw: two lines say which, and where its trace is; 2 the spec or the
command line is wrong; 3 the environment is (model, token, memory, results file); 130 or 143 interrupted; 141 nobody
reads the output any more. Whatever was finished is in the results files: run the same command again to go on."""


def build_parser() -> argparse.ArgumentParser:
    """What the command line looks like."""
    parser = argparse.ArgumentParser(
        prog="degrade",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("specs", nargs="+", metavar="SPEC", help="a TOML file, or the name of a spec that ships")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
                        help="override one value by dotted path, TOML syntax: --set run.n_rep=2")  # fmt: skip
    parser.add_argument("--sweep", action="append", default=[], metavar="NAME", dest="sweeps",
                        help="only this sweep (repeatable)")  # fmt: skip
    parser.add_argument("--results", type=Path, default=results_folder(), metavar="DIR",
                        help="default: $DEGRADE_RESULTS, else ./results")  # fmt: skip
    parser.add_argument("--device", metavar="auto|cpu|cuda|cuda:N", help="instead of the spec's model.device")
    workers = parser.add_argument_group("workers, each with a model of its own (one for every GPU that is visible)")
    workers.add_argument("--gpus", type=_count, metavar="N", help="use N GPUs; 1 needs no other process")
    workers.add_argument("--processes", type=_count, metavar="N", help="with --device cpu: N workers")
    workers.add_argument(
        "--gpus-per-model", type=_count, metavar="N", help="N GPUs for every worker, for a model that needs them"
    )
    workers.add_argument("--ray-address", metavar="ADDRESS", help="the GPUs of a Ray cluster: auto, or HOST:PORT")
    parser.add_argument("--dry-run", action="store_true", help="print plan, tensors, memory and time; load no weights")
    parser.add_argument("--force", action="store_true",
                        help="run everything again; the old file is kept under a dated name")  # fmt: skip
    parser.add_argument("--rate", metavar="RECORDS_PER_SECOND",
                        help="with --dry-run: what one GPU makes, instead of what earlier records say, to tell how "
                        "long 1, 4, 32 and 256 of them would take")  # fmt: skip
    parser.add_argument("--shard", metavar="I/N",
                        help="only part I of N, in files of its own: runs that know nothing of each other do all N, "
                        "and degrade merge joins their files")  # fmt: skip
    parser.add_argument("--log-level", default="INFO", choices=LOG_LEVELS)
    return parser


def results_folder() -> Path:
    """Where results are, unless the command line says otherwise."""
    return Path(os.environ.get("DEGRADE_RESULTS") or "results")


def _count(text: str) -> int:
    """A number of workers or GPUs.

    Raises:
        ArgumentTypeError: it is no whole number above 0.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def build_verify_parser() -> argparse.ArgumentParser:
    """What the command line of `degrade verify` looks like."""
    parser = argparse.ArgumentParser(
        prog="degrade verify",
        description="Damage again and compare digests, without generating: is it the same experiment on this machine?",
        epilog="exit codes: 0 every digest is equal; 1 some differ, which are listed, or an error that nobody foresaw; "
        "others as for degrade",
    )
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT", help="a results file, its sidecar beside it")
    parser.add_argument("--device", metavar="auto|cpu|cuda|cuda:N", help="instead of the spec's model.device")
    parser.add_argument("--log-level", default="INFO", choices=LOG_LEVELS)
    return parser


def build_check_parser() -> argparse.ArgumentParser:
    """What the command line of `degrade check` looks like."""
    parser = argparse.ArgumentParser(
        prog="degrade check",
        description="Look at every byte of results files, and compare the records with each other and the sidecar: "
        "checksums, keys, digests, settings, what is missing. Only reads, and needs no model.",
        epilog="exit codes: 0 no fault; 1 faults, each on a line, or an error that nobody foresaw; 3 a file cannot be "
        "read, is no results file, or was written by a newer degrade",
    )
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT", help="a results file, its sidecar beside it")
    parser.add_argument("--log-level", default="INFO", choices=LOG_LEVELS)
    return parser


def build_report_parser() -> argparse.ArgumentParser:
    """What the command line of `degrade report` looks like."""
    parser = argparse.ArgumentParser(
        prog="degrade report",
        description="Measure every text, find the damage at which each measure breaks, and write one page about it.",
        epilog="exit codes: as for degrade",
    )
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT", help="results files, of one or more runs")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: report/ beside the first results file")
    parser.add_argument("--score", action="store_true",
                        help="also the perplexity of every text under the intact model, which is loaded")  # fmt: skip
    parser.add_argument("--prompts", type=Path, metavar="PATH",
                        help="your prompt module, or a folder of them, for its answers; it is executed")  # fmt: skip
    parser.add_argument("--coherence-texts", type=int, default=600, metavar="N",
                        help="measure coherence on N texts, spread over all levels; default: %(default)s")  # fmt: skip
    parser.add_argument("--log-level", default="INFO", choices=LOG_LEVELS)
    return parser
