"""Import the class of a model as a run does, and print whether SciPy came along."""

import sys

import transformers

import runner.model_files  # noqa: F401 - which says what transformers need not import

if not issubclass(transformers.LlamaForCausalLM, transformers.PreTrainedModel):
    sys.exit("it is no model")
print("scipy" in sys.modules)
