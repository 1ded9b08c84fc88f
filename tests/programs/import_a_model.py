"""Import the class of a model as a run does, and print what came along that it does not need."""

import sys

import transformers

import runner.model_files  # noqa: F401 - which says what transformers need not import

if not issubclass(transformers.LlamaForCausalLM, transformers.PreTrainedModel):
    sys.exit("it is no model")
print([name for name in ("scipy", "sklearn") if name in sys.modules])
