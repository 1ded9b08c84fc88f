"""What `--dry-run` prints: plan, matched tensors, memory; from the configuration alone, no weights loaded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from runner import model_memory
from runner.cli_estimate import print_estimate
from runner.decode_batch import BatchShape
from runner.env_provenance import machine_facts
from runner.errors import SetupError
from runner.model_checkpoint import check_quantisation
from runner.model_files import build_on_meta
from runner.model_load import choose_device, load_config, locate
from runner.results_guard import Past, past_of
from runner.results_open import each_record, results_path
from runner.results_sidecar import read_sidecar
from runner.results_summary import RecordSummary
from runner.run_estimate import PastRates, Rate, machine_name
from runner.run_plan import Key, PendingCondition, all_conditions, pending_conditions, request_count
from runner.run_resume import check_asked, check_past_settings, not_made_again
from runner.run_setup import spelt_out
from runner.run_shapes import static_shape
from runner.run_shard import Shard, of_shard
from runner.spec import Spec
from runner.spec_sweep import Sweep
from runner.target_groups import is_tied, untie_where_asked
from runner.target_lesion import make_lesion
from runner.target_scores import reads_once
from runner.target_tensor import Target
from runner.task_files import TargetFile
from runner.task_tokens import TaskInputs, check, tokenise

TENSORS_SHOWN = 3


def preview(
    spec: Spec,
    spec_folder: Path,
    results: Path,
    console: Console,
    *,
    force: bool = False,
    shard: Shard | None = None,
    rate: Rate | None = None,
) -> None:
    """Print what a run would do.

    Raises:
        SpecError, SetupError: as the run itself would.
    """
    inputs = check(spec, spec_folder, results)
    spec = spelt_out(spec)
    rates = PastRates()
    pasts, finished = _read_pasts(spec, inputs, results, rates, force=force, shard=shard)
    pending = pending_conditions(of_shard(all_conditions(spec), shard), inputs.prompts, finished)
    console.print(_plan_table(spec, pending, len(inputs.prompts), shard))
    console.print(f"records to do: {request_count(pending)}, finished: {len(finished)}")
    for past in pasts:
        console.print(f"results file: {past.path}", soft_wrap=True)

    device, source = choose_device(spec.model.device, gpu_expected=False), locate(spec.model)
    config = load_config(source)
    check_quantisation(config, load_4bit=spec.model.load_4bit)
    model = build_on_meta(config)
    groups = _print_groups(spec, model, inputs.files, console)

    tokens = tokenise(spec, inputs)
    for past in pasts if not force else ():
        check_asked(past, spec, inputs, tokens)
    shape = _print_shapes(spec, tokens.ids, pasts, console)
    if device.type == "cuda" and (several := spec.generation.conditions_per_batch) > 1:
        console.print(f"conditions whose damage is small: up to {several} in a batch, with as many rows each")
    need = model_memory.estimate(model, groups, shape.rows, shape.length, getattr(torch, spec.model.dtype).itemsize)
    _print_memory(spec, need, device, console)
    print_estimate(pending, rates.best(machine_name(machine_facts(device)), rate), console)


def _read_pasts(
    spec: Spec, inputs: TaskInputs, results: Path, rates: PastRates, *, force: bool, shard: Shard | None
) -> tuple[list[Past], set[Key]]:
    """What the results files say, and which of their records stay."""
    pasts, finished = list[Past](), set[Key]()
    for method in dict.fromkeys(sweep.method for sweep in spec.sweeps):
        path = results_path(results, method, spec.model.id, spec.suffix, shard)
        kept = not_made_again([c for c in all_conditions(spec) if c.method == method])
        records = rates.watch(path, each_record(path))
        summary = RecordSummary.of(record for record in records if not force or kept(record))
        pasts.append(past_of(path, summary, read_sidecar(path) if summary.count else {}))
        finished |= summary.keys
        if not force:
            check_past_settings(pasts[-1], summary, spec, inputs)
    return pasts, finished


def _print_shapes(
    spec: Spec, token_ids: Sequence[Sequence[int]], pasts: Sequence[Past], console: Console
) -> BatchShape:
    """Print the shapes of the files' batches, and return the largest."""
    limit = spec.generation.max_batch_size
    most = len(token_ids) if limit == "auto" else min(len(token_ids), limit)
    shapes = [
        static_shape(spec, token_ids, past.last, most, several=several)
        for past in pasts
        for several in past.last or (False,)
    ]
    more = ", or more where repeats share a damaged model and memory allows" if limit == "auto" else ""
    for shape in dict.fromkeys(shapes):
        console.print(
            f"static shape: {shape.rows} rows{more}, {shape.length} tokens (longest prompt {shape.prompt_length})",
            soft_wrap=True,
        )
    return max(shapes, key=lambda shape: shape.rows * shape.length)


def _print_groups(
    spec: Spec, model: Any, files: Mapping[str, TargetFile], console: Console
) -> list[tuple[Target, ...]]:
    """Print the tensors of every group, and return them."""
    selections = spec.selections()
    untie_where_asked(model, selections.values())
    tied = "tied to the output head" if is_tied(model) else "not tied to the output head"
    console.print(f"model: {spec.model.id}, {type(model).__name__}, embeddings {tied}", soft_wrap=True)
    groups = []
    in_grids = {curve.label for sweep in spec.sweeps for curve in sweep.curves() if len(sweep.curves()) > 1}
    read = reads_once(files)
    for label, selection in selections.items():
        targets = make_lesion(model, selection, read).targets
        groups.append(targets)
        if label in in_grids:
            continue
        console.print(f"group {label}: {len(targets)} tensors, {sum(target.count for target in targets):,} weights")
        for target in targets[:TENSORS_SHOWN]:
            console.print(f"  {target.name} {list(target.weight.shape)}", soft_wrap=True)
        if len(targets) > TENSORS_SHOWN:
            console.print(f"  ... {targets[-1].name} {list(targets[-1].weight.shape)}", soft_wrap=True)
    counts = {label: sum(target.count for target in group) for label, group in zip(selections, groups, strict=True)}
    for sweep in spec.sweeps:
        if len(sweep.curves()) > 1:
            console.print(_grid_table(sweep, counts))
    return groups


def _grid_table(sweep: Sweep, counts: Mapping[str, int]) -> Table:
    """The curves of a grid and the weights of each, a row for each group."""
    curves = sweep.curves()
    table = Table(title=f"grid {sweep.name}: {len(curves)} curves", title_justify="left", box=None, pad_edge=False)
    for column in ("group", "curves", "weights of each"):
        table.add_column(column, no_wrap=True, justify="left" if column == "group" else "right")
    for group in sweep.groups:
        sizes = [counts[curve.label] for curve in curves if curve.groups == (group,)]
        labels = [curve.label for curve in curves if curve.groups == (group,)]
        name = labels[0] if len(labels) == 1 else f"{labels[0]} .. {labels[-1]}"
        spread = f"{min(sizes):,}" if min(sizes) == max(sizes) else f"{min(sizes):,} .. {max(sizes):,}"
        table.add_row(name, str(len(sizes)), spread)
    return table


def _print_memory(spec: Spec, need: model_memory.Estimate, device: torch.device, console: Console) -> None:
    """Print what the run needs and what is there.

    Raises:
        SetupError: it is not enough, and the run would not spread over more devices.
    """
    total = model_memory.total_memory(device)
    parts = {"weights": need.weights, "baseline": need.baseline, "cache": need.cache, "logits": need.logits}
    listed = " + ".join(f"{name} {size / model_memory.GIB:.2f}" for name, size in parts.items())
    have = f"{device} has {total / model_memory.GIB:.2f} GiB"
    console.print(f"memory: {listed} = {need.total / model_memory.GIB:.2f} GiB; {have}", soft_wrap=True)
    if need.total > model_memory.STOP_ABOVE * total:
        if device.type == "cpu" or spec.model.device != "auto":
            raise SetupError(f"model.device: the run needs {need.total / model_memory.GIB:.1f} GiB, and {have}")
        console.print("that is more than one GPU has: layers will be spread over all GPUs and the host")


def _plan_table(spec: Spec, pending: Sequence[PendingCondition], prompts: int, shard: Shard | None) -> Table:
    name = f"{spec.name}, shard {shard}" if shard else spec.name
    title = f"{name}: {prompts} prompts, {spec.run.n_rep} repeats, seed {spec.run.seed}; still to do:"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("sweep", "method", "group", "levels", "conditions", "records"):
        table.add_column(column, no_wrap=True, justify="right" if column in {"conditions", "records"} else "left")
    for sweep in spec.sweeps:
        found = [pending for pending in pending if pending.condition.sweep == sweep.name]
        levels = sweep.resolved_levels()
        shown = f"{len(levels)}, {levels[0]:g} .. {levels[-1]:g}"
        records, curves = request_count(found), sweep.curves()
        group = curves[0].label if len(curves) == 1 else f"{len(curves)} curves"
        table.add_row(sweep.name, sweep.method, group, shown, str(len(found)), str(records))
    return table
