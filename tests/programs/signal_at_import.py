"""The command `degrade`, sent a signal while it imports a module: MODULE, NUMBER, and its own arguments."""

import os
import sys
from collections.abc import Sequence

from runner import cli

MODULE, NUMBER = sys.argv.pop(1), int(sys.argv.pop(1))


class Finder:
    """Finds nothing, but knows what is looked for."""

    sent = False

    def find_spec(self, name: str, _path: Sequence[str] | None = None, _target: object = None) -> None:
        """Send the signal, once."""
        if name == MODULE and not self.sent:
            self.sent = True
            os.kill(os.getpid(), NUMBER)


sys.meta_path.insert(0, Finder())
sys.exit(cli.main())
