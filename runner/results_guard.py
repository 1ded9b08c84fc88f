"""The guard: what is added to a results file was asked in the same way of the same model as what is in it.

It compares what the records hold, and what the sidecar holds besides; a field that an older record does not have is
not compared. Each difference is named.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from runner.errors import SpecError
from runner.results_record import Record
from runner.results_sidecar import Tables
from runner.results_summary import RecordSummary, Witness
from runner.spec import Spec, to_tables

SHOWN_CHARACTERS = 200
NO_FILES: Mapping[str, str] = {}

Differences = dict[str, tuple[Any, Any]]  # what differs: what the file has, what this run has


@frozen(kw_only=True)
class Past:
    """What a results file and its sidecar say about what made them."""

    path: Path
    sidecar: Tables
    last: Mapping[bool, Record]  # of those whose batches had one condition, and several
    groups: frozenset[str]
    shared: frozenset[str]  # groups of which a batch had several conditions
    prompt_ids: Mapping[str, int]  # of the texts that were asked
    prompts: Mapping[str, str]  # their digests
    lengths: Mapping[str, int]  # their tokens
    perplexities: frozenset[str]  # digests of texts
    models: frozenset[str]  # digests of intact models
    witnesses: tuple[Witness, ...]  # one of each group

    @property
    def commits(self) -> set[str]:
        """The commits of a Hub's repository that the model came from."""
        return {run.get("model", {}).get("commit", "none") for run in _runs(self.sidecar)} - {"none"}

    @property
    def engines(self) -> set[str]:
        """The names of the engines that decoded."""
        return {str(run["engine"].get("name")) for run in _runs(self.sidecar) if "engine" in run}


def past_of(path: Path, summary: RecordSummary, sidecar: Tables) -> Past:
    """What is known from records and sidecar."""
    return Past(
        path=path,
        sidecar=sidecar,
        last=summary.last,
        groups=frozenset(summary.groups),
        shared=frozenset(summary.shared),
        prompt_ids=summary.prompt_ids,
        prompts=summary.prompts,
        lengths=summary.lengths,
        perplexities=frozenset(summary.perplexities),
        models=frozenset(summary.models),
        witnesses=tuple(summary.witnesses.values()),
    )


def check_settings(
    path: Path,
    summary: RecordSummary,
    settings: Mapping[str, Any],
    spec: Spec,
    sidecar: Tables,
    picture: str | None = None,
    files: Mapping[str, str] = NO_FILES,
) -> None:
    """Refuse to add records to a file that was made under other settings.

    Raises:
        SpecError: with every difference.
    """
    refuse(path, differences_of_settings(summary, settings, spec, sidecar, picture, files), whose="the spec")


def differences_of_settings(
    summary: RecordSummary,
    settings: Mapping[str, Any],
    spec: Spec,
    sidecar: Tables,
    picture: str | None,
    files: Mapping[str, str] = NO_FILES,
) -> Differences:
    """How a spec differs from what a file was made under; `settings` are the guarded ones of that spec.

    The seed is compared as that of repeat 0; the model's revision, groups of one's own and the text for the perplexity
    with the sidecar. `picture` is a digest, and so are the values of `files`, of scores and masks by name.
    """
    before = sidecar if summary.count else {}
    different = _differences_of_sidecar(before, spec)
    shown = {run["picture"] for run in _runs(before) if "picture" in run} - {"none"}
    shown |= summary.pictures
    if picture and shown - {picture}:
        different["the picture behind image.path"] = (", ".join(sorted(shown - {picture})), picture)
    for run in _runs(before):
        for name, digest in run.get("files", {}).items():
            if files.get(name, digest) != digest:
                different[f"the content of {name}"] = (digest, files[name])
    for key, wanted in settings.items():
        for have in summary.settings.get(key, ()):
            if have != wanted:
                different[key] = (have, wanted)
    return different


def _differences_of_sidecar(before: Tables, spec: Spec) -> Differences:
    different: Differences = {}
    tables = to_tables(spec)
    revision = before.get("model", {}).get("revision")
    commits = {run.get("model", {}).get("commit") for run in _runs(before)}
    pinned_now = spec.model.revision is not None and commits == {spec.model.revision}
    if before and revision != spec.model.revision and not pinned_now:
        different["model.revision"] = (revision, spec.model.revision)
    for name, group in before.get("groups", {}).items():
        if tables["groups"].get(name, group) != group:
            different[f"groups.{name}"] = (group, tables["groups"][name])
    measured = before.get("perplexity", {})
    if measured.get("compute") and spec.perplexity.compute and measured.get("text") != spec.perplexity.text:
        different["perplexity.text"] = (measured.get("text"), spec.perplexity.text)
    return different


def check_tokens(past: Past, lengths: Mapping[str, int], digests: Mapping[str, str], perplexity: str) -> None:
    """Refuse other tokens for a prompt that was asked before, or for the text whose perplexity was measured.

    Raises:
        SpecError: tokenizer, chat template, date or text are not what they were.
    """
    different = differences_of_tokens(past, lengths, digests, perplexity)
    hint = "The tokenizer, its chat template or run.date changed, or the text" if different else ""
    refuse(past.path, different, hint)


def differences_of_tokens(
    past: Past, lengths: Mapping[str, int], digests: Mapping[str, str], perplexity: str
) -> Differences:
    """How tokens differ from those that a file's prompts were.

    `lengths` and `digests` are those of prompts' tokens by text, `perplexity` is the digest of that text, or empty.
    """
    different: Differences = {}
    for text, digest in digests.items():
        if past.prompts.get(text, digest) != digest:
            different[f"tokens of the prompt {text!r}"] = (past.prompts[text], digest)
        elif text not in past.prompts and past.lengths.get(text, lengths[text]) != lengths[text]:
            different[f"number of tokens of the prompt {text!r}"] = (past.lengths[text], lengths[text])
    if perplexity and past.perplexities - {perplexity}:
        different["tokens of perplexity.text"] = (", ".join(sorted(past.perplexities - {perplexity})), perplexity)
    return different


def check_model(past: Past, facts: Mapping[str, Any], digest: str | None, weights: Mapping[Witness, str]) -> None:
    """Refuse another model under the same name.

    Raises:
        SpecError: with every difference.
    """
    refuse(past.path, differences_of_model(past, facts, digest, weights))


def differences_of_model(
    past: Past, facts: Mapping[str, Any], digest: str | None, weights: Mapping[Witness, str]
) -> Differences:
    """How a model differs from that of a file.

    `facts` are those of the run for the sidecar, `digest` that of the intact model; `weights` are the digests of
    damaged models of the past, made again.
    """
    different: Differences = {}
    if digest and past.models - {digest}:
        different["weights of the intact model"] = (", ".join(sorted(past.models - {digest})), digest)
    for witness, found in weights.items():
        if found != witness.digest:
            different[str(witness)] = (witness.digest, found)
    commit = facts["model"]["commit"]
    if commit != "none" and past.commits - {commit}:
        different["commit of the model (set model.revision)"] = (", ".join(sorted(past.commits - {commit})), commit)
    configs = [run["generation_config"] for run in _runs(past.sidecar) if "generation_config" in run]
    if past.last and configs:
        now = facts.get("generation_config", {})
        for key in sorted(configs[-1].keys() | now.keys()):
            if configs[-1].get(key) != now.get(key):
                different[f"{key} of the model's generation_config"] = (configs[-1].get(key), now.get(key))
    return different


_HINT = "Choose another name_suffix or --results, or start over with --force."


def refuse(path: Path, different: Differences, reason: str = "", whose: str = "this run", hint: str = _HINT) -> None:
    """Raise what was found, if anything; `whose` is what the file is compared with, `hint` what can be done.

    Raises:
        SpecError: with every difference.
    """
    if different:
        lines = [f"{key}: the file has {_shown(have)}, {whose} {_shown(new)}" for key, (have, new) in different.items()]
        head = " ".join(filter(None, [f"{path}: was made under other settings.", reason and f"{reason}.", hint]))
        raise SpecError("\n  ".join([head, *lines]))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def _runs(sidecar: Tables) -> Sequence[Tables]:
    runs: Sequence[Tables] = sidecar.get("provenance", {}).get("runs", [])
    return runs
