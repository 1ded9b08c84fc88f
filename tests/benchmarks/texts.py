"""How many texts of results files this machine makes again: what their sidecars say, run anew and laid beside them.

`python -m tests.benchmarks.texts FOLDER --out FILE.json` with the repository root and `tests` on the path. With
`--code` another checkout makes the texts: the one that made the files tells machines apart from versions.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from itertools import zip_longest
from pathlib import Path
from typing import Any

from helpers import importing
from records import Records, read_records

from runner.results_summary import key_of


def made_anew(folder: Path, place: Path, code: Path) -> list[tuple[Path, Path]]:
    """Every results file of a folder with the one that a checkout makes of its sidecar on this machine."""
    pairs = []
    for path in sorted(folder.glob("outputs_*.json")):
        if not (place / path.name).exists():  # a spec with several methods makes several files
            spec, environment = path.resolve().with_suffix(".toml"), importing(code.resolve(), HF_HUB_OFFLINE="1")
            command = [sys.executable, "-m", "runner.cli", spec, "--results", place, "--log-level", "WARNING"]
            subprocess.run(command, cwd=code, env=environment, check=True)
        pairs.append((path, place / path.name))
    return pairs


def compare(theirs: Records, own: Records) -> dict[str, Any]:
    """How many texts are equal, of intact and of damaged models, and how far the others go together.

    Of each text that parts: the share of its characters, of the longer one, that both have at the start.
    """
    texts = {key_of(record): record for record in own}
    equal: Counter[str] = Counter()
    of: Counter[str] = Counter()
    shares = []
    for record in theirs:
        other = texts[key_of(record)]
        kind = "damaged" if record["level_value"] else "intact"
        of[kind] += 1
        equal[kind] += record["output"] == other["output"]
        if record["output"] != other["output"]:
            letters = zip_longest(record["output"], other["output"])
            same = next(at for at, (one, another) in enumerate(letters) if one != another)
            shares.append(same / max(len(record["output"]), len(other["output"])))
    digests = sum(record["weights_digest"] == texts[key_of(record)]["weights_digest"] for record in theirs)
    return {"equal": dict(equal), "of": dict(of), "equal_digests": digests, "equal_share_of_others": sorted(shares)}


def machine(path: Path) -> dict[str, Any]:
    """What a sidecar says of the machine of its first run."""
    run = tomllib.loads(path.read_text())["provenance"]["runs"][0]
    machine = {key: run["machine"].get(key) for key in ("gpu", "device")}
    return {**machine, "torch": run["versions"]["torch"], "engine": run.get("engine", {}).get("name")}


def main() -> None:
    """Run anew, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="results files with their sidecars")
    parser.add_argument("--out", type=Path, required=True, help="the figures, as JSON")
    parser.add_argument("--code", type=Path, default=Path(), help="the checkout that makes the texts")
    told = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        for path, own in made_anew(told.folder, Path(place), told.code):
            compared = compare(read_records(path), read_records(own))
            machines = {"theirs": machine(path.with_suffix(".toml")), "own": machine(own.with_suffix(".toml"))}
            found[path.name] = {**machines, **compared}
            told.out.write_text(json.dumps(found, indent=1) + "\n")
            print(path.name, json.dumps(found[path.name]), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
