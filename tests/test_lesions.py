"""What a condition damages: units by lot or by score, in masks, at coordinates, beside what stays whole."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from forkserver import ForkServer
from helpers import Command, done, records_in, refused
from safetensors.torch import save_file
from tiny import build

from runner.damage_model import DamagedModel
from runner.errors import SpecError
from runner.spec_sweep import Sweep
from runner.spec_targets import Selection
from runner.target_lesion import make_lesion
from runner.target_scores import reads_once
from runner.task_files import TargetFile, file_digest

LAYERS, NEURONS, HEADS = 3, 128, 4
SEED = 7


def selection(**keys: Any) -> Selection:
    """What a sweep with these keys selects."""
    keys = {"method": "ablation", "group": "mlp_only", "levels": (0.5,)} | keys
    return evolve(Sweep(name="s", **keys).selection, key="sweeps[0]")


@pytest.fixture
def model() -> Any:
    """A tiny Llama of three layers."""
    return build("llama")


def saved(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, TargetFile]:
    """A file of scores or masks, as a run has found it."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return {path.name: TargetFile(path, file_digest(path, "scores"))}


def damaged(model: Any, selected: Selection, level: float, files: Mapping[str, TargetFile], **more: Any) -> Any:
    """The weights of a model under damage by name, and of the intact one; the model is intact again afterwards."""
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    lesion = make_lesion(model, selected, reads_once(files))
    with DamagedModel(lambda _: lesion) as damaged_model:
        damaged_model.damage(selected.label, more.get("method", "ablation"), level, more.get("seed", SEED))
        after = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    return before, after


def lost_neurons(before: Any, after: Any) -> list[set[int]]:
    """The neurons of each layer whose rows of gate and up and column of down are zero; others are as they were."""
    found = []
    for layer in range(LAYERS):
        gate, up, down = (f"model.layers.{layer}.mlp.{name}_proj.weight" for name in ("gate", "up", "down"))
        lost = {i for i in range(NEURONS) if not after[gate][i].any()}
        kept = [i for i in range(NEURONS) if i not in lost]
        assert not after[up][sorted(lost)].any()
        assert not after[down][:, sorted(lost)].any()
        assert torch.equal(after[gate][kept], before[gate][kept])
        assert torch.equal(after[up][kept], before[up][kept])
        assert torch.equal(after[down][:, kept], before[down][:, kept])
        found.append(lost)
    return found


def test_random_neurons_are_counted_and_nested(model: Any) -> None:
    """Exactly the rounded share of all of them; what is gone stays gone at more damage; another seed, other neurons."""
    chosen = selection(unit="neuron")
    levels = {level: lost_neurons(*damaged(model, chosen, level, {})) for level in (0.1, 0.25, 0.5, 1.0)}
    for level, lost in levels.items():
        assert sum(map(len, lost)) == int(level * LAYERS * NEURONS + 0.5)
    for less, more in ((0.1, 0.25), (0.25, 0.5), (0.5, 1.0)):
        assert all(a <= b for a, b in zip(levels[less], levels[more], strict=True))
    assert lost_neurons(*damaged(model, chosen, 0.1, {}, seed=SEED + 1)) != levels[0.1]
    everywhere = lost_neurons(*damaged(model, selection(unit="neuron", within="layer"), 0.1, {}))
    assert [len(lost) for lost in everywhere] == [13] * LAYERS


def scores(tmp_path: Path) -> tuple[dict[str, TargetFile], torch.Tensor]:
    """Scores of all neurons, of which some are equal."""
    values = torch.randn(LAYERS, NEURONS, generator=torch.Generator().manual_seed(3)).round(decimals=1)
    return saved(tmp_path / "words.safetensors", {f"neuron.{i}": row for i, row in enumerate(values)}), values


def by_score(values: torch.Tensor, count: int, *, highest: bool) -> list[set[int]]:
    """The units of extreme score, ties to the lower layer and index: by sorting a list."""
    ranked = sorted(((-v if highest else v), i) for i, v in enumerate(values.flatten().tolist()))
    chosen = {i for _, i in ranked[:count]}
    return [{i - layer * NEURONS for i in chosen if i // NEURONS == layer} for layer in range(LAYERS)]


def test_neurons_by_score_and_their_controls(model: Any, tmp_path: Path) -> None:
    """The highest, the lowest, and as many at random in every layer as the highest are."""
    files, values = scores(tmp_path)
    keys = {"unit": "neuron", "scores": "words.safetensors"}
    count = int(0.05 * LAYERS * NEURONS + 0.5)
    highest = lost_neurons(*damaged(model, selection(select="highest", **keys), 0.05, files))
    assert highest == by_score(values, count, highest=True)
    lowest = lost_neurons(*damaged(model, selection(select="lowest", **keys), 0.05, files))
    assert lowest == by_score(values, count, highest=False)
    matched = lost_neurons(*damaged(model, selection(select="matched", **keys), 0.05, files))
    assert list(map(len, matched)) == list(map(len, highest))
    assert matched != highest
    assert lost_neurons(*damaged(model, selection(select="matched", **keys), 0.05, files, seed=1)) != matched


def test_a_mask_keeps_to_what_it_allows(model: Any, tmp_path: Path) -> None:
    """Of units and of single weights; a share is one of what the mask allows."""
    allowed = torch.rand(LAYERS, NEURONS, generator=torch.Generator().manual_seed(4)) < 0.3
    files = saved(tmp_path / "core.safetensors", {f"neuron.{i}": row for i, row in enumerate(allowed)})
    chosen = selection(unit="neuron", mask="core.safetensors")
    assert lost_neurons(*damaged(model, chosen, 1.0, files)) == [set(row.nonzero()[:, 0].tolist()) for row in allowed]
    half = lost_neurons(*damaged(model, chosen, 0.5, files))
    assert sum(map(len, half)) == int(0.5 * int(allowed.sum()) + 0.5)
    name = "layers.1.mlp.up_proj.weight"
    mask = torch.rand(NEURONS, 64, generator=torch.Generator().manual_seed(5)) < 0.1
    files = saved(tmp_path / "weights.safetensors", {name: mask})
    before, after = damaged(model, selection(mask="weights.safetensors"), 1.0, files)
    for other, weight in before.items():
        expected = weight.masked_fill(mask, 0.0) if other == f"model.{name}" else weight
        assert torch.equal(after[other], expected)


def test_single_weights_by_score(model: Any, tmp_path: Path) -> None:
    """Exactly the rounded share of each tensor."""
    names = [f"layers.{layer}.mlp.down_proj.weight" for layer in range(LAYERS)]
    values = {
        name: torch.randn(64, NEURONS, generator=torch.Generator().manual_seed(i)) for i, name in enumerate(names)
    }
    files = saved(tmp_path / "saliency.safetensors", values)
    chosen = selection(group="mlp_down", select="lowest", scores="saliency.safetensors")
    before, after = damaged(model, chosen, 0.125, files)
    for name in names:
        least = values[name].flatten().argsort()[: 64 * NEURONS // 8]
        expected = before[f"model.{name}"].flatten().clone()
        expected[least] = 0
        assert torch.equal(after[f"model.{name}"].flatten(), expected)


def test_coordinates_are_the_only_weights_that_are_damaged(model: Any) -> None:
    """One super weight, removed."""
    name = "layers.1.mlp.down_proj.weight"
    before, after = damaged(model, selection(group="mlp_down", coordinates=((name, 3, 17),)), 1.0, {})
    different = {key: (after[key] != before[key]).nonzero().tolist() for key in before}
    assert {key: places for key, places in different.items() if places} == {f"model.{name}": [[3, 17]]}
    assert after[f"model.{name}"][3, 17] == 0


def test_what_is_protected_stays_whole(model: Any) -> None:
    """The largest weights of each tensor, under noise; all others change."""
    before, after = damaged(model, selection(method="mult_gauss", protect="largest 0.01"), 0.5, {}, method="mult_gauss")
    weight, now = (tensors["model.layers.0.mlp.up_proj.weight"].flatten() for tensors in (before, after))
    count = int(0.01 * len(weight) + 0.5)
    largest = weight.abs().argsort(descending=True)
    assert torch.equal(now[largest[:count]], weight[largest[:count]])
    assert (now[largest[count:]] != weight[largest[count:]]).float().mean() > 0.999


def test_noise_in_a_share_of_the_heads(model: Any) -> None:
    """A method whose level says how much: the chosen heads' rows of q and columns of o change, and nothing else."""
    before, after = damaged(
        model, selection(method="mult_gauss", group="attn_all", unit="head", share=0.25), 0.5, {}, method="mult_gauss"
    )
    changed = 0
    for layer in range(LAYERS):
        q, o = (f"model.layers.{layer}.self_attn.{name}_proj.weight" for name in ("q", "o"))
        rows = (after[q] != before[q]).any(dim=1).view(HEADS, -1).any(dim=1)
        columns = (after[o] != before[o]).any(dim=0).view(HEADS, -1).any(dim=1)
        assert torch.equal(rows, columns)
        changed += int(rows.sum())
    assert changed == int(0.25 * LAYERS * HEADS + 0.5)
    assert all(torch.equal(after[n], before[n]) for n in before if "q_proj" not in n and "o_proj" not in n)


@pytest.mark.parametrize(
    ("keys", "tensors", "message"),
    [
        ({"unit": "neuron", "select": "highest"}, {"neuron.0": torch.zeros(NEURONS)}, "there is no tensor 'neuron.1'"),
        ({"unit": "neuron", "select": "highest"}, {f"neuron.{i}": torch.zeros(3) for i in range(3)},
         "neuron.0 has the shape [3], [128] is needed"),
        ({"unit": "neuron", "select": "highest"}, {f"neuron.{i}": torch.full((NEURONS,), torch.nan) for i in range(3)},
         "NaN"),
        ({"select": "highest"}, {"layers.0.mlp.up_proj.weight": torch.zeros(3, 3)}, "holds no tensor"),
    ],
)  # fmt: skip
def test_scores_that_do_not_fit_are_refused(
    model: Any, tmp_path: Path, keys: dict[str, Any], tensors: dict[str, torch.Tensor], message: str
) -> None:
    """With the path in the spec."""
    files = saved(tmp_path / "words.safetensors", tensors)
    with pytest.raises(SpecError, match=r"sweeps\[0\].scores") as error:
        make_lesion(model, selection(scores="words.safetensors", **keys), reads_once(files))
    assert message in str(error.value)


def test_coordinates_that_are_not_there_are_refused(model: Any) -> None:
    """Another tensor, or beyond its shape."""
    for name, place, words in (
        ("layers.1.mlp.up_proj.weight", (1, 1), "is not in the group"),
        ("layers.1.mlp.down_proj.weight", (64, 1), "it is [64, 128]"),
        ("layers.1.mlp.down_proj.weight", (1,), "it is [64, 128]"),
    ):
        with pytest.raises(SpecError) as error:
            make_lesion(model, selection(group="mlp_down", coordinates=((name, *place),)))
        assert words in str(error.value)


SWEEP = (
    'sweeps=[{name="words", method="ablation", group="mlp_only", unit="neuron", select="highest", '
    'scores="words.safetensors", controls=true, levels=[0.0, 0.1]}]'
)


@pytest.mark.slow
def test_a_study_of_selected_neurons_through_the_command(degrade: Command, forks: ForkServer, study: Path) -> None:
    """Curves, digests that verify, the file in the sidecar, and no going on with other scores."""
    refused(degrade("--set", SWEEP), 2, "sweeps[0].scores: there is no 'words.safetensors'", "degrade localize")
    scores(study / "specs")
    done(degrade("--set", SWEEP))
    groups = {record["param_group_name"] for record in records_in(study / "results")}
    assert groups == {f"mlp_only[neuron][{select} words]" for select in ("highest", "lowest", "random as highest")}
    (results,) = (study / "results").glob("outputs_*.json")
    assert "words.safetensors" in results.with_suffix(".toml").read_text()
    assert "12 damaged models, 0 differ" in done(forks.run("verify", str(results), cwd=study)).stderr
    assert "nothing to do" in done(degrade("--set", SWEEP)).stderr
    changed = {f"neuron.{i}": torch.zeros(NEURONS) for i in range(LAYERS)}
    saved(study / "specs" / "words.safetensors", changed)
    refused(degrade("--set", SWEEP, "--set", "run.n_rep=3"), 2, "the content of words.safetensors")
