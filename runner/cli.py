"""The command `degrade`: from argv to spec paths and options, from errors to sentences and exit codes."""

import argparse
import gc
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from runner import cli_export, cli_lm_eval, cli_localize, cli_merge
from runner.cli_boundary import OBJECTS_PER_COLLECTION
from runner.cli_parser import build_check_parser, build_parser, build_report_parser, build_verify_parser
from runner.errors import SetupError, SpecError, Terminated, asked_to_stop, forget_stop, stop, stop_if_asked

if TYPE_CHECKING:  # everything that takes its time is imported behind the boundary that `main` is
    from runner.spec import Spec

logger = logging.getLogger("runner.cli")  # also where this module is the program itself

UNFORESEEN, NOBODY_READS = 1, 141
STOPPED: dict[type[BaseException], tuple[str, int]] = {
    KeyboardInterrupt: ("interrupted", 130),
    Terminated: ("terminated", 143),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code. Whatever goes wrong ends here, as a sentence."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    place: list[Path] = []  # of the log, as soon as it is known
    try:
        _reopen_closed_streams()
        code = _obey(arguments, place)
        sys.stdout.flush()
        _ignore_signals()
    except BrokenPipeError:
        return _nobody_reads()
    except BaseException as error:  # noqa: BLE001 - panics of Rust libraries included, which are no Exception
        # Where a signal strikes in compiled code, its exception may become another, as in torch's import of NumPy.
        if (kind := asked_to_stop() or type(error)) in STOPPED:
            return _stopped(*STOPPED[kind])
        if isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError):  # rich makes this of it
            return _nobody_reads()
        return _failed(error, arguments, place)
    return code


def _reopen_closed_streams() -> None:
    """Give closed standard streams to nobody: a results file that got the number of one would hold what they print."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "r" if name == "stdin" else "w"))


def _obey(arguments: list[str], place: list[Path]) -> int:
    """What the command does, from its arguments on."""
    command = arguments[0] if arguments[:1] and arguments[0] in COMMANDS else None
    parser, work = COMMANDS[command]
    try:
        options = parser().parse_args(arguments[1:] if command else arguments)
    except SystemExit as end:  # argparse has said why
        return end.code if isinstance(end.code, int) else 0
    gc.set_threshold(OBJECTS_PER_COLLECTION)
    forget_stop()
    signal.signal(signal.SIGTERM, lambda *_: stop(Terminated))
    # Also where a shell started this in the background, which ignores it.
    signal.signal(signal.SIGINT, lambda *_: stop(KeyboardInterrupt))
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _complain
    # Bit-equal products whatever the alignment of their operands: a row's numbers then do not depend on where in a
    # batch it stands. MKL reads this when it is loaded, so it has to be set before torch is imported.
    os.environ.setdefault("MKL_CBWR", "AUTO")
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"  # else a thread of transformers asks the Hub for one
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars of libraries would fill a log
    if command is None and not options.dry_run:
        place.append(options.results / "logs")
    from runner.env_container import read_token

    read_token()
    return work(options)


def _read_all(options: argparse.Namespace) -> "list[tuple[Path, Spec]]":
    """Every spec, checked as far as that goes without a model.

    Raises:
        SpecError: with what is wrong in any of them.
    """
    from runner.spec import find_spec, load_spec
    from runner.task_prompts import check_files

    found, wrong = [], []
    for argument in options.specs:
        try:
            path = find_spec(argument)
            spec = load_spec(path, options.overrides, options.sweeps, check=check_files)
        except SpecError as error:
            wrong.append(str(error))
            continue
        found.append((path, spec.on(options.device)))
    if wrong:
        raise SpecError("\n".join(dict.fromkeys(wrong)))
    return found


def _verify(options: argparse.Namespace) -> int:
    from runner import cli_console, model_load, run_verify

    cli_console.set_up_logging(options.log_level)
    model_load.quieten()
    equal = [run_verify.verify(path, options.device) for path in options.results]
    return 0 if all(equal) else 1


def _check(options: argparse.Namespace) -> int:
    from runner import cli_console, results_check

    cli_console.set_up_logging(options.log_level)
    code = 0
    for path in options.results:
        try:
            checked = results_check.check(path, cli_console.print_line)
        except SetupError as error:
            logger.error("%s", error)  # noqa: TRY400 - a sentence for the user; the other files are looked at as well
            code = SetupError.exit_code
        else:
            cli_console.print_line(f"{path}: {checked}")
            code = max(code, int(checked.faults > 0))
    return code


def _run(options: argparse.Namespace) -> int:
    from runner.env_container import check_results_stay
    from runner.env_provenance import versions
    from runner.run_ahead import begin_workers
    from runner.run_estimate import Rate
    from runner.run_shard import Shard
    from runner.run_team import Asked

    shard = Shard.parse(options.shard) if options.shard is not None else None
    rate = Rate.parse(options.rate, dry_run=options.dry_run) if options.rate is not None else None
    specs = _read_all(options)
    if not options.dry_run:
        check_results_stay(options.results)
    from runner import cli_console

    cli_console.set_up_logging(options.log_level)
    logger.info("degrade %(degrade)s, commit %(commit)s, torch %(torch)s, transformers %(transformers)s", versions())
    asked = Asked(
        gpus=options.gpus,
        processes=options.processes,
        gpus_per_model=options.gpus_per_model,
        ray_address=options.ray_address,
    )
    with nullcontext() if options.dry_run else begin_workers(asked, specs[0][1]) as begun:
        # Imported now: these bring torch and transformers, which a wrong spec need not wait for, nor the first line.
        from runner import cli_dry_run, model_load, run

        stop_if_asked()  # compiled code that is imported may have dropped it
        model_load.quieten()
        for path, spec in specs:
            logger.info("spec %s", path)
            if options.dry_run:
                more = {"force": options.force, "shard": shard, "rate": rate}
                cli_dry_run.preview(spec, path.parent, options.results, cli_console.output, **more)
            else:
                more = {"force": options.force, "shard": shard, "asked": asked, "begun": begun}
                run.run(spec, path.parent, options.results, **more)
    return 0


def _report(options: argparse.Namespace) -> int:
    from runner import cli_console

    cli_console.set_up_logging(options.log_level)
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
    "check": (build_check_parser, _check),
    "merge": (cli_merge.build_merge_parser, cli_merge.merge),
    "localize": (cli_localize.build_localize_parser, cli_localize.localize),
    "export": (cli_export.build_export_parser, cli_export.export),
    "lm_eval": (cli_lm_eval.build_lm_eval_parser, cli_lm_eval.evaluate),
    "report": (build_report_parser, _report),
}


def _complain(dropped: "sys.UnraisableHookArgs") -> None:
    """Say what Python drops, unless a signal meant it: then the run soon ends for it (`errors.stop_if_asked`)."""
    if not isinstance(dropped.exc_value, KeyboardInterrupt | Terminated):
        sys.__unraisablehook__(dropped)


def _ignore_signals() -> None:
    """Let the process end in peace: in what libraries do at its end, a signal would only leave a trace."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _stopped(how: str, exit_code: int) -> int:
    _ignore_signals()  # a second one could only spoil the message
    return _say(f"{how}; everything finished is saved, run the same command again to go on", exit_code)


def _nobody_reads() -> int:
    """End as quietly as a program that SIGPIPE ends."""
    _discard_output()
    return NOBODY_READS


def _discard_output() -> None:
    """Let what cannot be written go nowhere: the interpreter flushes once more at its end, and would complain."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _failed(error: BaseException, arguments: list[str], place: list[Path]) -> int:
    """Say what an error means, and where it was not foreseen keep its trace."""
    from runner.cli_boundary import first_line, foreseen, keep_trace

    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        _discard_output()
    if (known := foreseen(error)) is not None:
        return _say(str(known), known.exit_code)
    log = keep_trace(error, arguments, place[0] if place else None)
    where = f"its trace is in {log}" if log else "its trace can be written nowhere"
    return _say(f"unforeseen {type(error).__name__}: {first_line(error)}\n  {where}: please report both", UNFORESEEN)


def _say(message: str, exit_code: int) -> int:
    from runner.env_secrets import redact

    with suppress(OSError):  # nobody reads stderr
        print(f"degrade: {redact(message)}", file=sys.stderr, flush=True)  # noqa: T201 - this is the command's own voice
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
