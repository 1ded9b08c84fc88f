"""Load every file of a folder as a picture: prints the peak of memory in bytes, and the seconds of the processor."""

import contextlib
import resource
import sys
from pathlib import Path

from runner.errors import SpecError
from runner.task_image import load_picture

for path in Path(sys.argv[1]).iterdir():
    with contextlib.suppress(SpecError):
        load_picture(path)
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(sum(one.ru_maxrss for one in used) * 1024, sum(one.ru_utime + one.ru_stime for one in used))
