"""What the variables of launchers say, and that processes find each other through a store that outlives their predecessors."""

from __future__ import annotations

import multiprocessing
import os
from datetime import timedelta
from multiprocessing.queues import Queue

import pytest

from llm_lightning import distributed
from llm_lightning.config.schema import TrainerConfig
from llm_lightning.distributed import Launch, read_launch, write_variables
from llm_lightning.errors import UserError
from llm_lightning.launch import _require_agreement, _require_gpus

from .conftest import ROOT

TORCHRUN = {
    "RANK": "3",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "1234",
}
SRUN = {
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_NNODES": "2",
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[07-08,11],other",
}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Launch("none")),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, Launch("none")),
        (TORCHRUN, Launch("torchrun", 3, 1, 4, 2, 1, "10.0.0.1", 1234)),
        (
            TORCHRUN | SRUN,
            Launch("torchrun", 3, 1, 4, 2, 1, "10.0.0.1", 1234, job="slurm-77.0"),
        ),  # torchrun under srun, one a machine
        ({"RANK": "1", "WORLD_SIZE": "2"}, Launch("torchrun", 1, 0, 2, 1, 1, "127.0.0.1", 29500)),  # one process a machine
        (  # sbatch's script
            {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "ENVIRONMENT": "BATCH", "SLURM_JOB_ID": "77"},
            Launch("none", job="slurm-77.0"),
        ),
        (  # a single task, queued again
            {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "1", "SLURM_RESTART_COUNT": "2"},
            Launch("none", job="slurm-77.1", restarts=2),
        ),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "interactive"}, Launch("none")),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"}, Launch("none")),
    ],
)
def test_a_process_knows_how_it_was_started(variables: dict[str, str], expected: Launch) -> None:
    assert read_launch(variables) == expected


def test_a_process_that_is_started_reads_what_its_starter_wrote() -> None:
    launch = Launch("torchrun", 3, 1, 4, 2, 1, "10.0.0.1", 1234, has_store=True)
    assert read_launch(write_variables(launch)) == launch


def test_under_srun_ranks_meet_at_the_first_machine() -> None:
    launch = read_launch(SRUN)
    assert (launch.launcher, launch.rank, launch.local_rank, launch.world_size, launch.local_world_size) == ("srun", 3, 1, 4, 2)
    assert (launch.address, launch.node_rank, launch.job) == ("gpu07", 1, "slurm-77.0")
    assert launch.port == read_launch(SRUN | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}).port
    assert launch.port != read_launch(SRUN | {"SLURM_STEP_ID": "1"}).port  # another step of the job may run beside it
    assert read_launch(SRUN | {"SLURM_NNODES": "1"}).address == "127.0.0.1"  # the name of the machine need not resolve
    assert read_launch(SRUN | {"SLURM_RESTART_COUNT": "2"}).restarts == 2
    assert read_launch(SRUN | {"SLURM_PROCID": "2", "SLURM_LOCALID": "1", "SLURM_NODEID": "0"}).node_rank == 0  # dealt out in turns
    uneven = read_launch(SRUN | {"SLURM_NTASKS": "3"})
    with pytest.raises(UserError, match="not as many on each machine"):
        _require_agreement(TrainerConfig(), uneven)


def test_the_program_reads_variables_of_launchers_in_one_place() -> None:
    package = ROOT / "llm_lightning"
    names = ("LOCAL_RANK", "SLURM_", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_")
    readers = [f.name for f in package.rglob("*.py") if any(name in f.read_text(encoding="utf-8") for name in names)]
    assert sorted(readers) == ["launch.py", "launchers.py"]  # the first restores them


def _meet(port: int, rank: int, results: Queue[tuple[int, list[str], bool]]) -> None:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(number) for name, number in numbers.items()}, MASTER_ADDR="127.0.0.1")
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    distributed.connect(timedelta(seconds=60), timedelta(seconds=60), cuda=False, look_at_children=lambda: None)
    together = distributed.all_arrive("here", 30.0)
    alone = rank == 0 and distributed.all_arrive("alone", 0.2)
    results.put((rank, [distributed.broadcast(f"rank {rank}"), *distributed.gather(f"rank {rank}")], together and not alone))
    distributed.barrier()
    distributed.disconnect()


def test_processes_meet_through_a_store_that_still_holds_words_of_their_predecessors() -> None:
    store = distributed.open_store("127.0.0.1", 0, 2, True, timedelta(seconds=30))
    store.set("llm_lightning/word/0", "killed")
    store.set("llm_lightning/word/1", "killed too")
    store.set("llm_lightning/invitation", f'["127.0.0.1", {store.port}, ["killed", "killed too"]]')
    context = multiprocessing.get_context("fork")
    for _ in range(2):  # the second meeting as after a restart
        results: Queue[tuple[int, list[str], bool]] = context.Queue()
        ranks = [context.Process(target=_meet, args=(store.port, rank, results)) for rank in (1, 0)]
        for process in ranks:
            process.start()
        found = sorted(results.get(timeout=60) for _ in ranks)
        for process in ranks:
            process.join()
        assert found == [(rank, ["rank 0", "rank 0", "rank 1"], True) for rank in (0, 1)]


def test_a_process_must_see_a_gpu_for_each_process_of_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(UserError, match=r"srun started 2 processes on this machine, and each sees 1 GPUs: .*--gpus-per-node"):
        _require_gpus(Launch("srun", 1, 1, 2, 2))
    _require_gpus(Launch("srun", 1, 0, 2, 1))
