"""`Prompt` as a module of prompts imports it."""

import sys

import runner

assert "runner.task_prompts" not in sys.modules
from runner import Prompt  # noqa: E402 - only now

assert Prompt("Who?", answer="me").answer == ("me",)
assert not hasattr(runner, "prompt")
assert not {"torch", "transformers"} & set(sys.modules)
