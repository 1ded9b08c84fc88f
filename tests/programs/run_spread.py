"""The command `degrade`, told that a GPU has room for no model."""

import sys

from runner import cli, model_load

model_load.has_room = lambda *_: False
sys.exit(cli.main())
