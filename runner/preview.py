"""What `--dry-run` prints: plan, matched tensors, memory; from the configuration alone, no weights loaded."""

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from runner import vram
from runner.errors import SetupError
from runner.groups import find_targets, is_tied, untie
from runner.lab import check, check_fit
from runner.model import build_on_meta, choose_device, encode, load_config, load_tokenizer, locate
from runner.plan import Job, conditions_of, jobs_of
from runner.results import key_of, read_records, results_path
from runner.spec import Spec

GIB = 2**30
TENSORS_SHOWN = 3


def preview(spec: Spec, spec_folder: Path, results: Path, console: Console) -> None:
    """Print what a run would do.

    Raises:
        SpecError, SetupError: as the run itself would.
    """
    prompts = check(spec, spec_folder)
    conditions = conditions_of(spec)
    paths = {sweep.method: results_path(results, sweep.method, spec.model.id, spec.suffix) for sweep in spec.sweeps}
    finished = {key_of(record) for path in paths.values() for record in read_records(path)}
    jobs = jobs_of(conditions, prompts, finished)
    console.print(_plan_table(spec, jobs, len(prompts)))
    console.print(f"records to do: {sum(len(job.prompt_indices) for job in jobs)}, finished: {len(finished)}")
    for path in paths.values():
        console.print(f"results file: {path}", soft_wrap=True)

    device, source = choose_device(spec.model.device), locate(spec.model)
    model = build_on_meta(load_config(source))
    selections = spec.selections()
    if any(selection.tied != "both" for selection in selections.values()):
        untie(model)
    groups = {label: find_targets(model, selection) for label, selection in selections.items()}
    tied = "tied to the output head" if is_tied(model) else "not tied to the output head"
    console.print(f"model: {spec.model.id}, {type(model).__name__}, embeddings {tied}", soft_wrap=True)
    for group, targets in groups.items():
        weights = sum(target.count for target in targets)
        console.print(f"group {group}: {len(targets)} tensors, {weights:,} weights")
        for target in targets[:TENSORS_SHOWN]:
            console.print(f"  {target.name} {list(target.weight.shape)}", soft_wrap=True)
        if len(targets) > TENSORS_SHOWN:
            console.print(f"  ... {targets[-1].name} {list(targets[-1].weight.shape)}", soft_wrap=True)

    tokenizer = load_tokenizer(source)
    token_ids = [encode(tokenizer, prompt.text) for prompt in prompts]
    check_fit(spec, prompts, token_ids)
    rows = min(len(prompts), spec.generation.max_batch_size)
    length = max(map(len, token_ids)) + spec.generation.max_new_tokens
    console.print(f"static shape: {rows} rows, {length} tokens (longest prompt {max(map(len, token_ids))})")
    element = getattr(torch, spec.model.dtype).itemsize
    need = vram.estimate(model, list(groups.values()), rows, length, element)
    total = vram.total_memory(device)
    console.print(
        f"memory: weights {need.weights / GIB:.2f} + baseline {need.baseline / GIB:.2f} + cache {need.cache / GIB:.2f} "
        f"+ logits {need.logits / GIB:.2f} = {need.total / GIB:.2f} GiB; {device} has {total / GIB:.2f} GiB",
        soft_wrap=True,
    )
    if need.total > vram.STOP_ABOVE * total:
        raise SetupError(f"the run would need {need.total / GIB:.1f} GiB of {total / GIB:.1f} on {device}")


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
