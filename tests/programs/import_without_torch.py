"""Import modules of `runner`, named by the arguments; none of them may bring torch or transformers."""

import importlib
import sys

for name in sys.argv[1:]:
    importlib.import_module(f"runner.{name}")
    found = {"torch", "transformers"} & set(sys.modules)
    assert not found, (name, found)
