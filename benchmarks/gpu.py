"""Training on one GPU beside Hugging Face's Trainer and a plain loop: `python benchmarks/gpu.py [case …]`.

Without a case it takes those of `DEFAULT`, in four minutes at most; `CASES` has more. The peers of a case train one after the other
in one process, on the same sequences and with weights of the same shape:

- ours: the trainer of `train.py` with its meter and its CSV logger, after the part of preflight that decides how steps are computed;
- ours_eager, ours_recomputed: the same kernel by kernel, and with layers that run again in the backward pass (trainer.recompute);
- hf: Hugging Face's Trainer with bf16, fused AdamW and, for sentences, batches of like lengths; loader processes, no NaN filter;
- hf_no_cudnn: the same without cuDNN's attention, which builds a plan for each new shape;
- hf_compiled: the same under torch.compile;
- loop: a plain PyTorch loop, the whole model compiled, under bf16 autocast, with fused AdamW and clipping.

A peer warms up for some steps, then the clock runs over the next ones. The device is synchronised at both ends and at no other place.
Tokens are real tokens. MFU holds the FLOPs of the model, recomputation left out, against the data sheet's 989 TFLOP/s of an H100 or
H200, and against the fastest matrix product of this card. Results go to results/gpu_<card>.json, or gpu_<card>_<cases>.json where cases
are named, and are written again after each peer.

Time on such a device is dear. hf_compiled, which compiles for a long time, comes last of all cases. A peer that fails or runs out of time
leaves a note in the results, and the next one goes on. One that breaks the device or hangs takes its process with it: another goes on.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from settings import TINY, pick

DATA_SHEET = 989e12
"""FLOP/s of dense bf16 products of an H100 or H200 (SXM), by NVIDIA's data sheet."""
START_UP = 20.0
"""Seconds that imports may take."""
RESERVE = 8.0
"""Seconds of a case that a peer leaves to each peer behind it."""
LEAST = 4.0
"""Seconds below which a peer is not even begun."""
WHOLE = 240.0
"""Seconds for all of the default cases."""
GRACE = 20.0
"""Seconds behind its time limit after which a peer is taken to hang, and its process is killed."""


@dataclass(frozen=True)
class Case:
    """A model, its sequences and its peers."""

    architecture: str
    head: str
    """What follows `AutoModelFor`."""
    settings: dict[str, Any]
    """Of the architecture's Hugging Face config."""
    vocabulary: int
    rows: int
    """Sequences of an optimizer step."""
    peers: tuple[str, ...]
    limit: float
    """Seconds for all peers but hf_compiled, with what they build and compile."""
    late_limit: float
    """Seconds for hf_compiled."""
    length: int | None = None
    """Tokens of every sequence; None takes the sentences of SST-2."""
    micro_batches: int = 1
    warm_up: int = 15
    """Steps before the clock runs."""
    steps: int = 40
    """Steps that are timed."""
    captures: int = 0
    """Steps before the warm-up of ours in which its graphs are captured, one for each shape that sentences come in."""
    has_adapter: bool = False
    """Whether LoRA is trained, over weights that stay as they are, in bf16."""

    @property
    def is_classification(self) -> bool:
        return self.head == "SequenceClassification"

    @property
    def is_causal(self) -> bool:
        return self.head == "CausalLM"


BERT = {"num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
MODERNBERT = {"num_hidden_layers": 22, "hidden_size": 768, "intermediate_size": 1152, "num_attention_heads": 12}
GPT2 = {"n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
LLAMA_1B = {
    "num_hidden_layers": 18,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
LLAMA_8B = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
LATE = "hf_compiled"
OF_SENTENCES = ("ours", "hf", "hf_no_cudnn", LATE)
OF_ROWS = ("ours", "loop", "hf", "hf_no_cudnn", LATE)
OF_BLOCKS = ("ours", "loop", "hf", LATE)
CASES = {
    "bert32": Case("bert", "SequenceClassification", BERT, 30522, 32, OF_SENTENCES, 36, 25, captures=200, steps=60),
    "bert256": Case("bert", "SequenceClassification", BERT, 30522, 256, OF_SENTENCES, 30, 25, captures=100),
    "bert512": Case("bert", "SequenceClassification", BERT, 30522, 32, OF_ROWS, 60, 30, 512),
    "modernbert": Case("modernbert", "MaskedLM", MODERNBERT, 50368, 32, OF_ROWS, 90, 45, 1024, warm_up=10, steps=24),
    "gpt2": Case("gpt2", "CausalLM", GPT2, 50304, 64, OF_BLOCKS, 85, 35, 1024, micro_batches=2, warm_up=10, steps=24),
    "llama1b": Case("llama", "CausalLM", LLAMA_1B, 32000, 8, OF_BLOCKS, 75, 35, 2048, warm_up=6, steps=15),
    "recompute": Case("llama", "CausalLM", LLAMA_1B, 32000, 8, ("ours_eager", "ours_recomputed"), 60, 0, 2048, warm_up=4, steps=8),
    "lora8b": Case(
        "llama", "CausalLM", LLAMA_8B, 128256, 2, OF_BLOCKS, 120, 60, 4096, micro_batches=2, warm_up=4, steps=10, has_adapter=True
    ),
}
DEFAULT = pick(["bert32", "bert256", "gpt2", "llama1b"], ["bert32", "modernbert", "lora8b"])
SMALL: dict[str, dict[str, Any]] = {
    "bert": {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2},
    "modernbert": {"num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2},
    "gpt2": {"n_layer": 1, "n_embd": 32, "n_head": 2},
    "llama": {
        "num_hidden_layers": 1,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },
}
"""Sizes of the tiny models."""
if TINY:
    CASES = {
        name: replace(
            case,
            settings=case.settings | SMALL[case.architecture],
            vocabulary=500,
            rows=4,
            length=case.length and 32,
            limit=600,
            late_limit=600,
            warm_up=1,
            steps=2,
            captures=0,
        )
        for name, case in CASES.items()
    }

COLUMNS = ["case", "peer", "tokens/s", "ms a step", "GiB", "MFU", "of peak", "ours is faster by", "seconds", "note"]


@dataclass
class Result:
    """What a peer came to; numbers are NaN where it failed."""

    case: str
    peer: str
    numbers: dict[str, float]
    seconds: float
    note: str

    def row(self, ours: float, fastest: float) -> list[Any]:
        """Return the cells of `COLUMNS`, given our tokens/s and the FLOP/s of the fastest matrix product."""
        rate, flops = (self.numbers.get(name, math.nan) for name in ("tokens/s", "flops"))
        shares = [flops / DATA_SHEET, flops / fastest]
        ms, gib = (self.numbers.get(name, math.nan) for name in ("ms", "gib"))
        whole = rate if math.isnan(rate) else round(rate)
        return [self.case, self.peer, whole, ms, gib, *shares, ours / rate, self.seconds, self.note]


@dataclass(frozen=True)
class Job:
    """A peer of a case, and when it ends at the latest, by `time.time`."""

    case: str
    peer: str
    until: float


def list_jobs(names: list[str]) -> list[Job]:
    """Return what is to be done, in order: the cases without hf_compiled, then that of each case, of the last case first.

    The default cases have no time of their own for it, but what the others leave.
    """
    jobs = []
    until = time.time() + START_UP
    end = time.time() + WHOLE if names == DEFAULT and not TINY else math.inf
    for name in names:
        until += CASES[name].limit
        jobs += [Job(name, peer, until) for peer in CASES[name].peers if peer != LATE]
    for name in (name for name in reversed(names) if LATE in CASES[name].peers):
        until += CASES[name].late_limit
        jobs.append(Job(name, LATE, min(until, end)))
    return jobs


@dataclass
class State:
    """What has been measured, and what runs: kept in a file, as a peer may take its process with it."""

    jobs: list[Job]
    results: list[Result] = field(default_factory=list)
    """Of the first jobs, in their order."""
    sources: dict[str, str] = field(default_factory=dict)
    """What the text of each case is."""
    kill_at: float | None = None
    """When the job that runs is taken to hang, by `time.time`; None where none runs."""

    @staticmethod
    def read(file: Path) -> State:
        stored = json.loads(file.read_text())
        jobs, results = [Job(**job) for job in stored["jobs"]], [Result(**result) for result in stored["results"]]
        return State(jobs, results, stored["sources"], stored["kill_at"])

    def write(self, file: Path) -> None:
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self)))
        partial.replace(file)

    @property
    def left(self) -> list[Job]:
        """The jobs that have not run yet, that which runs included."""
        return self.jobs[len(self.results) :]

    def seconds_left(self) -> float:
        """Return how long the next job may take: the peers of its case that come next are left `RESERVE` each."""
        job, *others = self.left
        waiting = 0 if job.peer == LATE else sum(other.case == job.case and other.peer != LATE for other in others)
        return job.until - time.time() - RESERVE * waiting

    def finish(self, numbers: dict[str, float], seconds: float, note: str) -> None:
        """Take in what came of the next job."""
        job, self.kill_at = self.left[0], None
        self.results.append(Result(job.case, job.peer, numbers, seconds, note))
        speed = f"{numbers['tokens/s']:,.0f} tokens/s" if numbers else "failed"
        print(f"  {job.case}, {job.peer}: {speed} ({seconds:.0f} s) {note}", file=sys.stderr, flush=True)

    def delay(self, seconds: float) -> None:
        """Let every job end later."""
        self.jobs = [replace(job, until=job.until + seconds) for job in self.jobs]


def work(file: Path) -> int:
    """Do the jobs that are left. Returns 1 where the device does not work any more in this process, and another has to go on."""
    import logging

    import transformers
    from gpu_peers import CUDA, is_alive, measure_peak

    from llm_lightning.training import trainer

    if not CUDA and not TINY:
        print("gpu.py: skipped, there is no CUDA device here")
        return 0
    trainer.quiet_libraries()
    transformers.logging.set_verbosity_error()
    log = logging.getLogger("llm_lightning")
    log.addHandler(logging.StreamHandler())  # on standard error
    log.setLevel(logging.WARNING if TINY else logging.INFO)
    state = State.read(file)
    fastest = measure_peak()
    while state.left:
        do_jobs(state, file, fastest)
        if not is_alive():
            return 1
    publish(state, fastest, shown=True)
    return 0


def do_jobs(state: State, file: Path, fastest: float) -> None:
    """Do the next job and those behind it that are of the same case, until the device does not work any more."""
    from gpu_peers import OutOfTime, is_alive, limit_time, prepare_case, run_peer

    name, started = state.left[0].case, time.time()
    with tempfile.TemporaryDirectory() as folder:
        try:
            with limit_time(state.seconds_left()):
                shared, problem = prepare_case(CASES[name], Path(folder)), ""
            state.sources[name] = shared.source
        except (OutOfTime, Exception) as error:
            problem = f"no data: {error!r}"[:200]
        print(f"  {name}: {state.sources.get(name, '')} ({time.time() - started:.0f} s)", file=sys.stderr, flush=True)
        while state.left and state.left[0].case == name and is_alive():
            started, seconds = time.time(), state.seconds_left()
            state.kill_at = started + seconds + GRACE
            state.write(file)
            numbers: dict[str, float] = {}
            note = problem or "no time was left"
            if not problem and seconds > LEAST:
                numbers, note = run_peer(state.left[0].peer, shared, seconds)
            state.finish(numbers, time.time() - started, note)
            state.write(file)
            publish(state, fastest)


def publish(state: State, fastest: float, shown: bool = False) -> None:
    """Write all results so far, and print them where they are to be shown."""
    from common import report, write_results
    from gpu_peers import DEVICE, name_card

    order = {(job.case, job.peer): (list(CASES).index(job.case), CASES[job.case].peers.index(job.peer)) for job in state.jobs}
    results = sorted(state.results, key=lambda result: order[result.case, result.peer])
    ours = {result.case: result.numbers.get("tokens/s", math.nan) for result in results if result.peer in ("ours", "ours_eager")}
    rows = [result.row(ours.get(result.case, math.nan), fastest) for result in results]
    facts = {"fastest product TFLOP/s": fastest / 1e12, "data sheet TFLOP/s": DATA_SHEET / 1e12, "text": state.sources}
    name = "_".join(["gpu", name_card(), *sys.argv[1:]])
    (report if shown else write_results)(name, COLUMNS, rows, facts, DEVICE.type)


def supervise(names: list[str]) -> int:
    """Have the jobs done in a process of their own; where it ends early or hangs, another goes on behind the job that did it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # which ends the other process too, below
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "state.json"
        State(list_jobs(names)).write(file)
        while True:
            before = len(State.read(file).results)
            process = subprocess.Popen([sys.executable, __file__, "work", str(file), *sys.argv[1:]])
            try:
                code = wait(process, file)
            finally:
                process.kill()
            state = State.read(file)
            if state.kill_at is not None:
                state.finish({}, 0.0, "its process hung" if code is None else f"its process ended with {code}")
            if code != 0:  # the others are not to pay for it
                state.delay(START_UP + (GRACE if code is None else 0.0))
                state.write(file)
            if code == 0 or len(state.results) == before:
                return code or 0


def wait(process: subprocess.Popen[bytes], file: Path) -> int | None:
    """Return the exit code of a process, None where its peer hangs."""
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(1.0)
        kill_at = State.read(file).kill_at
        if kill_at is not None and time.time() > kill_at:
            return None


def main() -> None:
    arguments = sys.argv[1:]
    state = Path(arguments[1]) if arguments[:1] == ["work"] else None
    sys.argv[1:] = arguments if state is None else arguments[2:]  # results name the command that was given
    names = sys.argv[1:] or DEFAULT
    if unknown := [name for name in names if name not in CASES]:
        raise SystemExit(f"gpu.py: there is no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    sys.exit(supervise(names) if state is None else work(state))


if __name__ == "__main__":
    main()
