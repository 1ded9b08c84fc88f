"""How a batch is decoded: the plain way, that way captured in a CUDA graph, or fused kernels in a graph.

`products` is `fused` with products of its own, whose sums round otherwise. The fastest that works and that agrees with
the plain one is chosen once per run, and the sidecar says which. torch's compiler was left out on purpose: kernels that
are ready in seconds need no stand-in until they are, and a stand-in that is replaced at some moment would make records
depend on that moment.
"""

import gc
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from attrs import frozen
from torch import Tensor

from runner.cli_boundary import is_out_of_memory
from runner.decode_batch import Request, UnknownDecoderError
from runner.decode_copies import damaged
from runner.decode_reference import TOLERANCES, Trace, equal_bits, relative_difference, trace
from runner.decode_step import DecodeState
from runner.model_placement import is_spread

logger = logging.getLogger(__name__)

Name = Literal["products", "fused", "graph", "plain"]
Placed = Literal["in place", "copies", "intact"]
SLOWEST_FIRST: tuple[Name, ...] = ("plain", "graph", "fused", "products")
PRODUCTS_CAPABILITY = 9  # Hopper, for whose number of multiprocessors and shared memory the tiles were measured
WITH_COPIES: Collection[Name] = ("fused", "products")  # several conditions in a batch need one of these
TRIAL_ROWS = 8
CLEARLY = 2.0  # times nearer to the damaged model than the intact one is
LEAST_AGREEMENT = 0.5  # of the first tokens: a sum that rounds to the other side of top-p makes another draw


@frozen
class EngineChoice:
    """How a run decodes, and why not faster."""

    name: Name
    note: str = ""


PLAIN = EngineChoice("plain")


class DisagreementError(Exception):
    """A fast path computes something else than the plain one."""


def fastest_for(earlier: Iterable[str]) -> Name:
    """The fastest engine with which a run may go on where earlier runs decoded with these: the slowest of them.

    Another would add up otherwise, and a resumed run would not give the records of an uninterrupted one. A run on a CPU
    is `plain`, and one on CUDA cannot repeat it: it sets no limit, and neither does an engine that is not known here.
    """
    return min({*SLOWEST_FIRST[1:]} & {*earlier} or {SLOWEST_FIRST[-1]}, key=SLOWEST_FIRST.index)


def select_engine(decoder: DecodeState, requests: Sequence[Request], fastest: Name = SLOWEST_FIRST[-1]) -> EngineChoice:
    """The fastest engine that agrees with the plain one on the first steps of some requests; it is then in use.

    None that is faster than `fastest` is tried.
    """
    return _fastest_on_cuda(decoder, requests, fastest) if decoder.device.type == "cuda" else install(decoder, PLAIN)


def _fastest_on_cuda(decoder: DecodeState, requests: Sequence[Request], fastest: Name) -> EngineChoice:
    if is_spread(decoder.model):
        return install(decoder, EngineChoice("plain", "the model is spread over several devices"))
    requests = requests[: min(TRIAL_ROWS, decoder.shape.prompts)]
    expected, in_place = trace(decoder, requests), _damaged_traces(decoder, requests, "in place")
    notes = []
    for name in SLOWEST_FIRST[SLOWEST_FIRST.index(fastest) : 0 : -1]:
        if decoder.copies is not None and name not in WITH_COPIES:
            break
        try:
            install(decoder, EngineChoice(name))
            found = trace(decoder, requests)
            _compare(found, expected, TOLERANCES[decoder.logits.dtype])
            _compare_copies(decoder, requests, in_place)
            if not equal_bits(found, trace(decoder, requests)):
                raise DisagreementError("the same steps gave other bits when they were repeated")  # noqa: TRY301
        except Exception as error:
            if is_out_of_memory(error):  # which fewer rows mend, and a slower engine does not
                raise
            # A compiler can fail in any way; it is said below, and in the sidecar.
            notes.append(f"{name}: {error}".splitlines()[0])
            expectable = isinstance(error, UnknownDecoderError)
            logger.log(logging.INFO if expectable else logging.WARNING, "not decoding the fast way: %s", notes[-1])
        else:
            return EngineChoice(name, "; ".join(notes))
    return install(decoder, EngineChoice("plain", "; ".join(notes)))


def _damaged_traces(decoder: DecodeState, requests: Sequence[Request], how: Placed) -> list[Trace]:
    """The trace of a condition whose matrices are damaged, one kind after the other; none without copies.

    Prompts are read by damaged matrices. Tokens are: `in place`; as `copies` beside intact ones; or by `intact` ones.
    """
    copies = decoder.copies
    if copies is None:
        return []

    def of(matrices: Sequence[Tensor]) -> Trace:
        with damaged(matrices) as restore, ExitStack() as kept:

            def prompts_are_read() -> None:
                if how == "copies":
                    kept.callback(copies.forget)
                    copies.keep(0, matrices)
                if how != "in place":
                    restore()

            return trace(decoder, requests, prompts_are_read=prompts_are_read)

    return [of(matrices) for matrices in copies.samples()]


def _compare_copies(decoder: DecodeState, requests: Sequence[Request], in_place: Sequence[Trace]) -> None:
    """Conditions must be decoded with their own matrices.

    Raises:
        DisagreementError: they are not, or what is damaged changes too little to tell.
    """
    copied, intact = (_damaged_traces(decoder, requests, how) for how in ("copies", "intact"))
    for one, without, expected in zip(copied, intact, in_place, strict=True):
        _compare(one, expected, TOLERANCES[decoder.logits.dtype])
        (token, logits, active), others = expected[1], (one[1], without[1])
        usable = active & logits.isfinite().all(dim=-1)
        for other_token, other_logits, _ in others:
            usable = usable & (token == other_token) & other_logits.isfinite().all(dim=-1)
        near, far = (relative_difference(other[1][usable], logits[usable]) for other in others)
        if usable.any() and not CLEARLY * near < far:
            raise DisagreementError(f"copies of damaged matrices are {near:.2g} from damage in place, intact {far:.2g}")


def install(decoder: DecodeState, engine: EngineChoice) -> EngineChoice:
    """Let the decoder use an engine; its rows must be free."""
    decoder.read, decoder.advance = decoder.prefill_step, decoder.decode_steps
    if engine.name != "plain":
        _capture_on_cuda(decoder, engine.name)
    return engine


def _capture_on_cuda(decoder: DecodeState, name: Name) -> None:
    with torch.inference_mode(), torch.cuda.device(decoder.device):
        decoder.prefill_step()  # its cache is allocated now
        step = _plain_step(decoder) if name == "graph" else _fused_step(decoder, name)
        pool = torch.cuda.graph_pool_handle()
        decoder.read, step = _Captured(decoder.prefill_step, pool), _Captured(step, pool)
    decoder.advance = lambda count: _replay(step, count)


def _fused_step(decoder: DecodeState, name: Name) -> Callable[[], None]:
    from runner.decode_fused import FusedStep  # Triton is not everywhere
    from runner.decode_gemm import ProductsStep

    if name == "fused":
        return FusedStep(decoder)
    if torch.cuda.get_device_capability(decoder.device)[0] != PRODUCTS_CAPABILITY:
        raise UnknownDecoderError("its products were measured on Hopper GPUs only")
    return ProductsStep(decoder)


def _plain_step(decoder: DecodeState) -> Callable[[], None]:
    def step() -> None:
        decoder.sample_step()
        decoder.forward()

    return step


def _replay(step: Callable[[], None], count: int) -> None:
    for _ in range(count):
        step()


class _Captured:
    """Work as a CUDA graph: what the host took a thousand launches for is one. All its tensors must stay in place."""

    def __init__(self, work: Callable[[], None], pool: Any) -> None:
        self._work = work  # the graph reads memory that this owns, and does not keep it alive itself
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # kernels are compiled and libraries make their plans outside the graph
            work()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with _no_garbage_collection(), torch.cuda.graph(self._graph, pool=pool):
            work()

    def __call__(self) -> None:
        self._graph.replay()


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collect before and not within: an older graph that is destroyed during a capture spoils it."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _compare(found: Trace, expected: Trace, tolerance: float) -> None:
    """Rows are compared as long as their tokens are the same: another draw is followed by other logits.

    Raises:
        DisagreementError: most rows drew another token at once, or logits differ by more than rounding.
    """
    same = torch.ones_like(expected[0][2])
    for step, ((token, logits, _), (other_token, other_logits, active)) in enumerate(zip(found, expected, strict=True)):
        if step:
            same = same & (token == other_token)
        if step == 1 and same.double().mean() < LEAST_AGREEMENT:
            raise DisagreementError(f"{int((~same).sum())} of {len(same)} first tokens differ")
        usable = same & active & other_logits.isfinite().all(dim=-1)
        if not usable.any():
            return
        difference = relative_difference(logits[usable], other_logits[usable])
        logger.debug("step %d: logits differ by %.2g of their spread", step, difference)
        if not difference <= tolerance:
            raise DisagreementError(f"logits differ by {difference:.2g} at step {step}")
