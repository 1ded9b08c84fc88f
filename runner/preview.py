"""What `--dry-run` prints: plan, matched tensors, memory; from the configuration alone, no weights loaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from runner import vram
from runner.checkpoint import check_quantisation
from runner.errors import SetupError
from runner.groups import find_targets, is_tied, untie_where_asked
from runner.loading import build_on_meta
from runner.model import choose_device, load_config, locate
from runner.plan import Job, conditions_of, jobs_of
from runner.results import key_of, read_records, results_path
from runner.spec import Spec
from runner.target import Target
from runner.tokens import check, tokenise

TENSORS_SHOWN = 3


def preview(spec: Spec, spec_folder: Path, results: Path, console: Console) -> None:
    """Print what a run would do.

    Raises:
        SpecError, SetupError: as the run itself would.
    """
    material = check(spec, spec_folder)
    prompts = material.prompts
    paths = {sweep.method: results_path(results, sweep.method, spec.model.id, spec.suffix) for sweep in spec.sweeps}
    finished = {key_of(record) for path in paths.values() for record in read_records(path)}
    jobs = jobs_of(conditions_of(spec), prompts, finished)
    console.print(_plan_table(spec, jobs, len(prompts)))
    console.print(f"records to do: {sum(len(job.prompt_indices) for job in jobs)}, finished: {len(finished)}")
    for path in paths.values():
        console.print(f"results file: {path}", soft_wrap=True)

    device, source = choose_device(spec.model.device, gpu_expected=False), locate(spec.model)
    config = load_config(source)
    check_quantisation(config, load_4bit=spec.model.load_4bit)
    model = build_on_meta(config)
    groups = _print_groups(spec, model, console)

    token_ids = tokenise(spec, material).ids
    limit, longest = spec.generation.max_batch_size, max(map(len, token_ids))
    rows = len(prompts) if limit == "auto" else min(len(prompts), limit)
    length = longest + spec.generation.max_new_tokens
    more = ", or more where repeats share a damaged model and memory allows" if limit == "auto" else ""
    console.print(f"static shape: {rows} rows{more}, {length} tokens (longest prompt {longest})", soft_wrap=True)
    need = vram.estimate(model, groups, rows, length, getattr(torch, spec.model.dtype).itemsize)
    _print_memory(spec, need, device, console)


def _print_groups(spec: Spec, model: Any, console: Console) -> list[tuple[Target, ...]]:
    """Print the tensors of every group, and return them."""
    selections = spec.selections()
    untie_where_asked(model, selections.values())
    tied = "tied to the output head" if is_tied(model) else "not tied to the output head"
    console.print(f"model: {spec.model.id}, {type(model).__name__}, embeddings {tied}", soft_wrap=True)
    groups = []
    for label, selection in selections.items():
        targets = find_targets(model, selection)
        groups.append(targets)
        console.print(f"group {label}: {len(targets)} tensors, {sum(target.count for target in targets):,} weights")
        for target in targets[:TENSORS_SHOWN]:
            console.print(f"  {target.name} {list(target.weight.shape)}", soft_wrap=True)
        if len(targets) > TENSORS_SHOWN:
            console.print(f"  ... {targets[-1].name} {list(targets[-1].weight.shape)}", soft_wrap=True)
    return groups


def _print_memory(spec: Spec, need: vram.Estimate, device: torch.device, console: Console) -> None:
    """Print what the run needs and what is there.

    Raises:
        SetupError: it is not enough, and the run would not spread over more devices.
    """
    total = vram.total_memory(device)
    parts = {"weights": need.weights, "baseline": need.baseline, "cache": need.cache, "logits": need.logits}
    listed = " + ".join(f"{name} {size / vram.GIB:.2f}" for name, size in parts.items())
    have = f"{device} has {total / vram.GIB:.2f} GiB"
    console.print(f"memory: {listed} = {need.total / vram.GIB:.2f} GiB; {have}", soft_wrap=True)
    if need.total > vram.STOP_ABOVE * total:
        if device.type == "cpu" or spec.model.device != "auto":
            raise SetupError(f"model.device: the run needs {need.total / vram.GIB:.1f} GiB, and {have}")
        console.print("that is more than one GPU has: layers will be spread over all GPUs and the host")


def _plan_table(spec: Spec, jobs: Sequence[Job], prompts: int) -> Table:
    title = f"{spec.name}: {prompts} prompts, {spec.run.n_rep} repeats, seed {spec.run.seed}; still to do:"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("sweep", "method", "group", "levels", "conditions", "records"):
        table.add_column(column, no_wrap=True, justify="right" if column in {"conditions", "records"} else "left")
    for sweep in spec.sweeps:
        found = [job for job in jobs if job.condition.sweep == sweep.name]
        levels = sweep.resolved_levels()
        shown = f"{len(levels)}, {levels[0]:g} .. {levels[-1]:g}"
        records = sum(len(job.prompt_indices) for job in found)
        table.add_row(sweep.name, sweep.method, sweep.label, shown, str(len(found)), str(records))
    return table
