"""Planted records of grids: seven projections by layers, one cell with a strong effect, the rest noise or nothing."""

from collections.abc import Iterator, Sequence
from typing import Any

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "mlp_gate", "mlp_up", "mlp_down")
STRONG = "mlp_down[2]"
WORDS = "the quiet river bends past an old stone mill where nobody grinds corn any longer"


def grid_record(label: str, level: float, repeat: int, prompt: int, **fields: Any) -> dict[str, Any]:
    """A record of one cell; what is planted in it comes in `fields`."""
    record = {
        "timestamp": "2026-11-26T12:00:00+00:00", "experiment_id": "ablation|a/model|planted",
        "config_name": "planted", "model_name": "a/model", "degradation_method": "ablation",
        "param_group_name": label, "std_dev": level, "level_value": level, "repeat_index": repeat,
        "seed": 42 + repeat, "prompt_id": prompt, "prompt_text": f"Question {prompt}", "output": f"{WORDS} {repeat}",
        "tokens": 100, "finish_reason": "length", "image_used": False,
        "weights_digest": f"{label} {level} {repeat if level else 0}", "do_sample": True,
    }  # fmt: skip
    return {**record, **fields}


def planted_grid(
    layers: Sequence[str] = ("0", "1", "2", "3"),
    levels: Sequence[float] = (0.1, 0.3),
    *,
    repeats: int = 3,
    prompts: int = 4,
    options: str = "",
) -> Iterator[dict[str, Any]]:
    """The undamaged model, and every projection of every layer.

    Tokens: 100 and +-2 by prompt; under damage also +-1 or 0 by repeat, and 50 x level less in the cell STRONG. The
    perplexity is 10, under damage times 1.1, 1 or 1 / 1.1 by repeat, and in STRONG at the last level 8 times that.
    """
    for repeat in range(repeats):
        for prompt in range(1, prompts + 1):
            tokens, noise = 100 + (2, -2)[prompt % 2], (0, 1, -1)[repeat % 3]
            yield grid_record("mlp_down", 0.0, repeat, prompt, tokens=tokens, perplexity=10.0)
            for label in (f"{group}[{layer}]{options}" for group in PROJECTIONS for layer in layers):
                for level in levels:
                    strong = label == f"{STRONG}{options}"
                    yield grid_record(
                        label, level, repeat, prompt, tokens=tokens + noise - round(50 * level) * strong,
                        perplexity=10.0 * 1.1**noise * (8 if strong and level == levels[-1] else 1),
                    )  # fmt: skip
