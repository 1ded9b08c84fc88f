"""Whether the same run gives the same bits again, with and without cuDNN's attention: Gemma-3-4B shapes on CUDA.

`python -m tests.benchmarks.determinism --out FILE.json` with the repository root on the path, two minutes on an H100.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from runner.decode_batch import BatchShape, Completion, Request
from runner.decode_engine import EngineChoice, Name
from runner.decode_packing import pack_projections
from runner.decode_scheduler import BatchScheduler
from tests.benchmarks.decoding import SAMPLED, gemma

ROWS, RUNS = 38, 2
LENGTHS = {24: 150, 300: 100}  # tokens of a prompt, and new ones


def first_difference(one: list[Completion], other: list[Completion]) -> tuple[int, int | None]:
    """How many rows have other tokens, and the earliest step at which one has."""
    steps = [
        next((i for i, (a, b) in enumerate(zip(x.token_ids, y.token_ids, strict=False)) if a != b), None)
        for x, y in zip(one, other, strict=True)
    ]
    found = [step for step in steps if step is not None]
    return len(found), min(found, default=None)


def measure(model: Any, engine: Name, width: int) -> dict[str, Any]:
    """Runs of the same questions, all compared with the first."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(300, 262_000, (ROWS, width), generator=draw).tolist()
    questions = [Request(row, str(index), index) for index, row in enumerate(ids)]
    generator = BatchScheduler(
        model, BatchShape(rows=ROWS, prompt_length=width, new_tokens=LENGTHS[width]), SAMPLED, [], 0
    )
    generator.use(EngineChoice(engine))
    answers = [generator.answer(questions) for _ in range(RUNS)]
    compared = [first_difference(answers[0], other) for other in answers[1:]]
    return {
        "engine": engine,
        "prompt_tokens": width,
        "new_tokens": LENGTHS[width],
        "rows_that_differ": max(rows for rows, _ in compared),
        "first_step": min((step for _, step in compared if step is not None), default=None),
    }


def main() -> None:
    """Measure and write down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    model = gemma(torch.bfloat16)
    pack_projections(model)
    found = []
    for cudnn in (True, False):
        torch.backends.cuda.enable_cudnn_sdp(enabled=cudnn)
        for engine in ("plain", "graph", "fused"):
            for width in LENGTHS:
                found.append({"cudnn_attention": cudnn, **measure(model, engine, width)})
                print(found[-1], flush=True)  # noqa: T201 - what this is run for
                facts = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
                out.write_text(json.dumps(facts | {"rows": ROWS, "runs": RUNS, "found": found}, indent=1) + "\n")
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
