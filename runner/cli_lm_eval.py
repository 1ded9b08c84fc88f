"""`degrade lm_eval` on the command line: that of lm-evaluation-harness, which then knows the model `degrade`."""

import argparse
import sys

from runner.errors import SetupError

MODEL, CLASS = "degrade", "runner.run_lm_eval:DamagedModelLM"


def build_lm_eval_parser() -> argparse.ArgumentParser:
    """What the command line of `degrade lm_eval` looks like: every word is for lm-evaluation-harness."""
    parser = argparse.ArgumentParser(
        prog="degrade lm_eval",
        usage="degrade lm_eval --model degrade --model_args spec=SPEC,sweep=NAME,level=X,repeat=N --tasks ...",
        description="Run lm-evaluation-harness (extra lm-eval), which knows the model `degrade` then: a condition of a "
        "spec, or of the sidecar of a results file. --model_args has spec, and of sweep, method, group, level and "
        "repeat as many as name one condition; beside them whatever its model `hf` takes (max_length, ...). "
        "--device is that of the spec unless given. All other options are those of lm_eval. Releases after 0.4.13 find "
        "the model without this command: lm_eval --model degrade.",
        prefix_chars="\0",
        add_help=False,
    )
    parser.add_argument("arguments", nargs="*", metavar="ARGUMENT", help="as for lm_eval")
    return parser


def evaluate(options: argparse.Namespace) -> int:
    """Do what the command line asks for; the exit code."""
    try:
        import lm_eval.models  # noqa: F401 - fills the registry, which nobody does once something is in it
        from lm_eval.__main__ import cli_evaluate
        from lm_eval.api.registry import model_registry
    except ModuleNotFoundError as error:
        raise SetupError(
            f"degrade lm_eval needs the package {error.name}. Run: pip install '.[lm-eval]' in degrade's folder"
        ) from None
    if MODEL not in model_registry:
        model_registry.register(MODEL, target=CLASS)
    before, sys.argv = sys.argv, ["lm_eval", *options.arguments]
    try:
        cli_evaluate()
    except SystemExit as end:  # its parser has said why
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = before
    return 0
