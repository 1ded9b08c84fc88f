"""The demo's real model: what damage does to its perplexity, measured through the command."""

import json
from pathlib import Path

import pytest
from helpers import Command, done

from runner.spec import find_spec, load_spec

SWEEPS = [sweep.name for sweep in load_spec(find_spec("demo")).sweeps]
QUANTISATION = "{name='quant_attn', method='uni_quant', group='attn_only', levels=[1024, 64, 16]}"
# Measured on 22 November 2026 with torch 2.13.0 on an AMD EPYC; four digits hold on any machine.
QUANTISED_PERPLEXITY = {1024: 14.66902, 64: 14.46301, 16: 32.02054}


def perplexities(degrade: Command, study: Path, *arguments: str) -> dict[str, dict[float, float]]:
    """Perplexity by group and level of a run of the demo that answers with one token."""
    done(degrade("--set", "generation.max_new_tokens=1", *arguments, spec="demo"))
    found: dict[str, dict[float, float]] = {}
    for path in (study / "results").glob("outputs_*.json"):
        for record in json.loads(path.read_text()):
            name = f"{record['degradation_method']} {record['param_group_name']}"
            found.setdefault(name, {})[record["std_dev"]] = record["perplexity"]
    return found


@pytest.mark.slow
def test_damage_hurts_and_mlp_damage_hurts_more(degrade: Command, study: Path) -> None:
    """Perplexity rises along every stochastic sweep, and faster for the MLP than for attention, as in the study."""
    found = perplexities(degrade, study)
    assert len(found) == len(SWEEPS)
    for name, by_level in found.items():
        rising = [by_level[level] for level in sorted(by_level)]
        assert rising == sorted(set(rising)), (name, by_level)
    attention, mlp = found["mult_gauss attn_only"], found["mult_gauss mlp_only"]
    assert attention.keys() == mlp.keys()
    for level in attention:
        assert mlp[level] > attention[level] or level == 0, (level, mlp, attention)


@pytest.mark.slow
def test_quantised_perplexity_is_a_constant(degrade: Command, study: Path) -> None:
    """Quantisation draws no random numbers: the perplexity of a fixed text is the same everywhere to four digits."""
    found = perplexities(degrade, study, "--set", f"sweeps=[{QUANTISATION}]")
    assert found["uni_quant attn_only"] == pytest.approx(QUANTISED_PERPLEXITY, rel=5e-5)
