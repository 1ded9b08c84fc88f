"""The demo's real model: what quantisation does to its perplexity. What the demo itself finds, tests/demo looks at."""

import json
from pathlib import Path

import pytest
from helpers import Command, done

QUANTISATION = "{name='quant_attn', method='uni_quant', group='attn_only', levels=[1024, 64, 16]}"
# Measured on 22 November 2026 with torch 2.13.0 on an AMD EPYC; four digits hold on any machine.
QUANTISED_PERPLEXITY = {1024: 14.66902, 64: 14.46301, 16: 32.02054}


@pytest.mark.slow
def test_quantised_perplexity_is_a_constant(degrade: Command, study: Path) -> None:
    """Quantisation draws no random numbers: the perplexity of a fixed text is the same everywhere to four digits."""
    one_token = ("--set", "generation.max_new_tokens=1")
    done(degrade(*one_token, "--set", f"sweeps=[{QUANTISATION}]", spec="demo"))
    (path,) = (study / "results").glob("outputs_uni_quant_*.json")
    found = {record["std_dev"]: record["perplexity"] for record in json.loads(path.read_text())}
    assert found == pytest.approx(QUANTISED_PERPLEXITY, rel=5e-5)
