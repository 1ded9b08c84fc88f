"""The command `degrade`: from argv to spec paths and options, from errors to sentences and exit codes."""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from attrs import evolve

from runner.container import check_results_stay, read_token_file
from runner.errors import DegradeError, SetupError
from runner.provenance import versions
from runner.spec import Spec, find_spec, load_spec

logger = logging.getLogger("runner.cli")  # also where this module is the program itself

INTERRUPTED, TERMINATED = 130, 143
LOG_LEVELS = ("DEBUG", "INFO", "WARNING")

DESCRIPTION = "Damage a language model on purpose, step by step, and record how its language breaks down."
EPILOG = """\
degrade verify RESULT [RESULT ...]: damage again and compare digests, generate nothing; see degrade verify --help
degrade report RESULT [RESULT ...]: tables, figures and one page from results files; see degrade report --help

exit codes: 0 done; 2 the spec or the command line is wrong; 3 the environment is (model, token, memory, results
file); 130 or 143 interrupted. Whatever was finished is in the results files: run the same command again to go on."""


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
    parser.add_argument("--results", type=Path, default=Path(os.environ.get("DEGRADE_RESULTS") or "results"),
                        metavar="DIR", help="default: $DEGRADE_RESULTS, else ./results")  # fmt: skip
    parser.add_argument("--device", metavar="auto|cpu|cuda|cuda:N", help="instead of the spec's model.device")
    parser.add_argument("--dry-run", action="store_true", help="print plan, tensors and memory; load no weights")
    parser.add_argument("--force", action="store_true",
                        help="run everything again; the old file is kept under a dated name")  # fmt: skip
    parser.add_argument("--log-level", default="INFO", choices=LOG_LEVELS)
    return parser


def build_verify_parser() -> argparse.ArgumentParser:
    """What the command line of `degrade verify` looks like."""
    parser = argparse.ArgumentParser(
        prog="degrade verify",
        description="Damage again and compare digests, without generating: is it the same experiment on this machine?",
        epilog="exit codes: 0 every digest is equal; 1 some differ; 2 and 3 as for degrade",
    )
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT", help="a results file, its sidecar beside it")
    parser.add_argument("--device", metavar="auto|cpu|cuda|cuda:N", help="instead of the spec's model.device")
    parser.add_argument("--log-level", default="INFO", choices=LOG_LEVELS)
    return parser


def build_report_parser() -> argparse.ArgumentParser:
    """What the command line of `degrade report` looks like."""
    parser = argparse.ArgumentParser(
        prog="degrade report",
        description="Measure every text, find the damage at which each measure breaks, and write one page about it.",
        epilog="exit codes: 0 done; 2 and 3 as for degrade",
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments[:1] in (["verify"], ["report"]) else None
    parser, work = COMMANDS[command]
    options = parser().parse_args(arguments[1:] if command else arguments)
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell started this in the background
    # Bit-equal products whatever the alignment of their operands: a row's numbers then do not depend on where in a
    # batch it stands. MKL reads this when it is loaded, so it has to be set before torch is imported.
    os.environ.setdefault("MKL_CBWR", "AUTO")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars of libraries would fill a log
    try:
        read_token_file()
        return work(options)
    except DegradeError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted; everything finished is saved, run the same command again to go on", INTERRUPTED)
    except _Terminated:
        return _fail("terminated; everything finished is saved, run the same command again to go on", TERMINATED)


def _read(path: Path, options: argparse.Namespace) -> Spec:
    spec = load_spec(path, options.overrides, options.sweeps)
    return evolve(spec, model=evolve(spec.model, device=options.device)) if options.device else spec


def _verify(options: argparse.Namespace) -> int:
    from runner import logs, model, verify

    logs.set_up(options.log_level)
    model.quieten()
    equal = [verify.verify(path, options.device) for path in options.results]
    return 0 if all(equal) else 1


def _run(options: argparse.Namespace) -> int:
    specs = [(path, _read(path, options)) for path in map(find_spec, options.specs)]
    if not options.dry_run:
        check_results_stay(options.results)
    from runner import logs

    logs.set_up(options.log_level)
    logger.info("degrade %(degrade)s, commit %(commit)s, torch %(torch)s, transformers %(transformers)s", versions())
    # Imported now: these bring torch and transformers, which a wrong spec need not wait for, nor the first log line.
    from runner import experiment, model, preview

    model.quieten()
    for path, spec in specs:
        logger.info("spec %s", path)
        if options.dry_run:
            preview.preview(spec, path.parent, options.results, logs.output)
        else:
            experiment.run(spec, path.parent, options.results, force=options.force)
    return 0


def _report(options: argparse.Namespace) -> int:
    from runner import logs

    logs.set_up(options.log_level)
    try:
        from runner import report
    except ModuleNotFoundError as error:
        raise SetupError(
            f"degrade report needs the package {error.name}. Run: pip install '.[report]' in degrade's folder"
        ) from None
    out = options.out or options.results[0].parent / "report"
    page = report.report(
        options.results, out, score=options.score, texts=options.coherence_texts, prompts=options.prompts
    )
    logger.info("look at %s", page)
    return 0


COMMANDS = {
    None: (build_parser, _run),
    "verify": (build_verify_parser, _verify),
    "report": (build_report_parser, _report),
}


class _Terminated(BaseException):
    """SIGTERM arrived; no `except` on the way may swallow it."""


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise _Terminated


def _fail(message: str, exit_code: int) -> int:
    from runner.redact import redact

    print(f"degrade: {redact(message)}", file=sys.stderr)  # noqa: T201 - this is the command's own voice
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
