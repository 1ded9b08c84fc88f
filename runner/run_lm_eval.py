"""A condition of a spec as a model of lm-evaluation-harness; the only module that imports that package."""

import logging
from typing import Any

from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from runner.errors import SpecError
from runner.model_load import choose_device, load_tokenizer, locate
from runner.run_condition import KEYS, Where, facts_of, find_condition
from runner.run_damaged import load_damaged
from runner.run_plan import all_conditions
from runner.run_setup import spelt_out
from runner.spec import find_spec, load_spec
from runner.task_files import folders_of_results

logger = logging.getLogger(__name__)

DECIDED_BY_SPEC = {"pretrained", "tokenizer", "dtype", "revision", "gguf_file", "parallelize", "peft", "delta"}


@register_model("degrade")
class DamagedModelLM(HFLM):  # type: ignore[misc]  # a class without types
    """The model of a spec under the damage of one condition; everything else is as of the harness's model `hf`."""

    def __init__(self, spec: str, device: str | None = None, **options: Any) -> None:
        """`spec` is a file or the name of one that ships; `options` name the condition, or are those of `hf`.

        Raises:
            SpecError: the spec is wrong, or not exactly one condition is named.
            SetupError: the model cannot be had.
        """
        words = {key: options.pop(key) for key in KEYS if key in options}
        if wrong := sorted(DECIDED_BY_SPEC & options.keys()):
            raise SpecError(f"--model_args: {', '.join(wrong)}: the spec says this; change it there")
        path = find_spec(str(spec))
        whole = spelt_out(load_spec(path).on(device))
        condition = find_condition(all_conditions(whole), Where.of(words), str(path))
        loaded = load_damaged(whole, condition, choose_device(whole.model.device), folders_of_results(path))
        logger.info("%s: weights_digest %s", condition, loaded.digest)
        super().__init__(pretrained=loaded.model, tokenizer=load_tokenizer(locate(whole.model)), **options)
        self.degrade_facts = {
            "spec": str(path),
            "model": whole.model.id,
            **facts_of(condition),
            "weights_digest": loaded.digest,
            "model_digest": loaded.intact_digest,
        }

    def get_model_info(self) -> dict[str, Any]:
        """What stands in the harness's results: that of `hf`, and which damage it was."""
        return {**super().get_model_info(), "degrade": self.degrade_facts}
