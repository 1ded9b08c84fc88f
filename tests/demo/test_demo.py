"""What the demo wrote into results/: damage raises the model's perplexity. `nox -s demo` runs both, once."""

import json
from pathlib import Path

from runner.spec import find_spec, load_spec

RESULTS = Path(__file__).parents[2] / "results"


def test_damage_hurts_and_mlp_damage_hurts_more() -> None:
    """Perplexity rises along every stochastic sweep, and faster for the MLP than for attention, as in the study."""
    found: dict[tuple[str, str], dict[float, float]] = {}
    for path in RESULTS.glob("outputs_*_demo.json"):
        for record in json.loads(path.read_text()):
            if record["repeat_index"] == 0:  # whoever had more repeats made has them in these files
                sweep = record["degradation_method"], record["param_group_name"]
                found.setdefault(sweep, {})[record["std_dev"]] = record["perplexity"]
    for sweep in load_spec(find_spec("demo")).sweeps:
        by_level = found[sweep.method, sweep.group]
        rising = [by_level[level] for level in sweep.resolved_levels()]
        assert len(rising) == 5
        assert rising == sorted(set(rising)), (sweep.name, by_level)
    attention, mlp = found["mult_gauss", "attn_only"], found["mult_gauss", "mlp_only"]
    assert attention.keys() == mlp.keys()
    for level in attention:
        assert mlp[level] > attention[level] or level == 0, (level, mlp, attention)
