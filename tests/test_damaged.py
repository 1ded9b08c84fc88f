"""`from runner import damaged`: a model in a notebook gets the bits that the command gives, and gets its own back."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny import build

from runner import damaged
from runner.damage_digest import digest_of
from runner.errors import SetupError, SpecError
from runner.model_load import load_model, locate
from runner.run_damaged import load_damaged
from runner.run_plan import all_conditions
from runner.spec import Model, Spec
from runner.spec_methods import METHODS
from runner.spec_sweep import Sweep

HALF = {"group": "mlp_only", "method": "mult_gauss", "level": 0.5}


def bits(model: Any) -> str:
    """A digest of all weights, shared ones under both names."""
    return digest_of(list(model.named_parameters(remove_duplicate=False)))


def load(folder: Path) -> Any:
    """A model as anybody loads it."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture
def llama() -> Any:
    """A tiny Llama; its weights are trainable, as in a notebook."""
    return build("llama")


def test_the_digest_is_that_of_records(finished: Path, checkpoints: dict[str, Path]) -> None:
    """For every condition of a study: the same digest and effect, and afterwards every bit as before."""
    model, seen = load(checkpoints["llama"]), set()
    before = bits(model)
    for path in sorted((finished / "results").glob("outputs_*.json")):
        for record in json.loads(path.read_text()):
            condition = (record["degradation_method"], record["param_group_name"], record["std_dev"], record["seed"])
            if condition in seen:
                continue
            seen.add(condition)
            method, group, level, seed = condition
            with damaged(model, group=group, method=method, level=level, seed=seed) as effect:
                assert effect.digest == record["weights_digest"]
                assert (bits(model) == before) == (effect.fraction_changed == 0)
            assert bits(model) == before
    assert len(seen) == 3 * 2 * 2


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_every_bit_comes_back_from_any_end(llama: Any, kind: type[BaseException]) -> None:
    """Of the block."""
    before, inside = bits(llama), []

    def use() -> None:
        with damaged(llama, **HALF):
            inside.append(bits(llama))
            raise kind

    with pytest.raises(kind):
        use()
    assert inside != [before]
    assert bits(llama) == before


def test_every_bit_comes_back_from_a_block_that_nobody_leaves(llama: Any) -> None:
    """A generator that is thrown away closes its block."""
    before = bits(llama)

    def use() -> Iterator[None]:
        with damaged(llama, **HALF):
            yield

    generator = use()
    next(generator)
    assert bits(llama) != before
    del generator
    assert bits(llama) == before


def test_what_goes_wrong_while_damaging_leaves_nothing(llama: Any) -> None:
    """A group that the model does not have, a level out of range: errors by key, the model as it was."""
    before = bits(llama)
    with pytest.raises(SpecError, match="vision tower"), damaged(llama, **HALF | {"group": "reference_attn"}):
        pass
    with pytest.raises(SpecError, match=r"group: 'mlp_onli' is no parameter group; did you mean mlp_only\?"):
        damaged(llama, **HALF | {"group": "mlp_onli"}).__enter__()
    with pytest.raises(SpecError, match=r"damaged:\n  level -1 is not allowed"):
        damaged(llama, **HALF | {"level": -1}).__enter__()
    with pytest.raises(SpecError, match="layerz: unknown key; did you mean layers"):
        damaged(llama, **HALF, layerz="0").__enter__()
    with pytest.raises(SpecError, match="seed: -1"):
        damaged(llama, **HALF, seed=-1).__enter__()
    with pytest.raises(SpecError, match="one level here"):
        damaged(llama, **HALF, levels=[0.1]).__enter__()
    assert bits(llama) == before


def test_keys_of_a_sweep_and_groups_are_those_of_a_spec(llama: Any) -> None:
    """Layers and custom groups reach what they name, numbers of NumPy are numbers."""
    with damaged(llama, **HALF, layers="1") as effect:
        assert effect.tensors == 3
    groups = {"mine": {"include": ("layers.*.mlp.up_proj.weight",), "layers": "0-1"}}
    with damaged(
        llama, group="mine", method="ablation", level=np.float64(0.25), seed=np.int64(3), groups=groups
    ) as one:
        assert one.tensors == 2
    with damaged(llama, group="mlp_up", layers="0-1", method="ablation", level=0.25, seed=3) as same:
        assert same.digest == one.digest


LEVELS = {"uni_quant": 8, "mult_gauss": 0.3, "add_gauss": 0.3}


@pytest.mark.slow
@pytest.mark.parametrize(
    "sweep",
    [
        *({"method": method} for method in METHODS),
        {"method": "ablation", "unit": "neuron"},
        {"method": "ablation", "unit": "head", "group": "attn_all", "within": "layer"},
        {"method": "add_gauss", "share": 0.1, "per": "row"},
        {"method": "shuffle", "pieces": "rows", "layers": "1-"},
    ],
    ids=str,
)
def test_every_method_and_unit_is_that_of_a_spec(checkpoints: dict[str, Path], sweep: dict[str, Any]) -> None:
    """Loaded and damaged as the command does it: the same bits everywhere; restored afterwards."""
    words = {"group": "mlp_only", **sweep}
    level = LEVELS.get(sweep["method"], 0.25)
    asked = Sweep(name="one", levels=(level,), **words)
    spec = Spec(name="s", prompts="n", model=Model(id=str(checkpoints["llama"]), dtype="float32"), sweeps=(asked,))
    loaded = load_damaged(spec, all_conditions(spec)[0], torch.device("cpu"))
    model = load(checkpoints["llama"])
    before = bits(model)
    with damaged(model, level=level, **words) as effect:
        assert effect.digest == loaded.digest
        assert bits(model) == bits(loaded.model) != before
    assert bits(model) == before


def test_one_damaged_model_at_a_time(llama: Any) -> None:
    """A grid is several; what they are is said."""
    with pytest.raises(SpecError, match=r"mean 3 damaged models, not one: mlp_only\[0\], mlp_only\[1\], mlp_only\[2\]"):
        damaged(llama, **HALF, each="layer").__enter__()


def test_blocks_within_blocks(llama: Any) -> None:
    """Of different tensors each is what it is alone; a tensor that is damaged already is refused, and stays so."""
    before = bits(llama)
    attention = {"group": "attn_only", "method": "ablation", "level": 0.5}
    with damaged(llama, **attention) as effect:
        alone = effect.digest
    with damaged(llama, **HALF):
        outer = bits(llama)
        with damaged(llama, **attention) as effect:
            assert effect.digest == alone
        assert bits(llama) == outer
        with pytest.raises(SetupError, match="is damaged already"), damaged(llama, **HALF | {"group": "mlp_down"}):
            pass
        assert bits(llama) == outer
    assert bits(llama) == before


def test_ties_come_back() -> None:
    """One side of tied embeddings is damaged alone; afterwards they are one tensor again, and the config says so."""
    model = build("gemma3_text")
    before, ids = bits(model), torch.arange(5, 25)[None]
    intact = model(ids).logits
    with damaged(model, group="embed_only", tied="input", method="mult_gauss", level=0.5) as effect:
        assert model.lm_head.weight is not model.model.embed_tokens.weight
        assert effect.tensors == 1
        assert not torch.equal(model(ids).logits, intact)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.tie_word_embeddings is True
    assert bits(model) == before
    assert torch.equal(model(ids).logits, intact)


def test_gradients_flow_through_a_damaged_model(llama: Any) -> None:
    """A notebook may ask what the damage does to them."""
    ids, norms = torch.arange(5, 25)[None], []
    for level in (0.0, 0.5):
        with damaged(llama, **HALF | {"level": level}):
            llama.zero_grad()
            llama(ids, labels=ids).loss.backward()
            norms.append(float(llama.model.layers[0].mlp.up_proj.weight.grad.norm()))
    assert all(norms)
    assert norms[0] != norms[1]


@pytest.mark.slow
def test_a_model_in_4_bits_is_unpacked_and_packed_again(checkpoints: dict[str, Path]) -> None:
    """Its group gets plain weights within the block only; once it was used on the CPU that is too late."""
    model = load_model(locate(Model(id=str(checkpoints["llama"]))), "float32", torch.device("cpu"), load_4bit=True)
    modules = dict(model.named_modules())
    with damaged(model, **HALF) as effect:
        assert type(model.model.layers[0].mlp.up_proj) is torch.nn.Linear
        assert effect.fraction_changed > 0.9
    assert dict(model.named_modules()) == modules
    with damaged(model, **HALF) as again:
        assert again.digest == effect.digest
        for module in modules.values():
            quant_state = getattr(getattr(module, "weight", None), "quant_state", None)
            if quant_state is not None:  # what bitsandbytes marks when it repacks, where the processor has the kernels
                quant_state.packing_format_for_cpu = True
    with pytest.raises(SetupError, match="load the model again"), damaged(model, **HALF):
        pass


def test_other_quantised_weights_are_refused(llama: Any) -> None:
    """Integers are no weights that a formula could damage."""
    layer = llama.model.layers[0].mlp.up_proj
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(SetupError, match=r"up_proj.weight holds torch.int8"), damaged(llama, **HALF):
        pass
