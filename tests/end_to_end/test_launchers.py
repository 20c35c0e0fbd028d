"""One run, whoever starts its processes: torchrun, srun, the program itself; and one end, whatever happens to one of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llm_lightning.training.checkpoints import list_checkpoints

from ..conftest import QUIET, ROOT, TINY_GPT
from .conftest import Launched, LaunchRanks
from .test_runs import losses, same_weights

TORCHRUN = Path(sys.executable).with_name("torchrun")


@pytest.fixture
def arguments(corpus: Path, cache: Path) -> list[str]:
    data = ["data=text", "data.document=line", "data.block_size=32", f"data.train={corpus}", f"cache_dir={cache}"]
    steps = ["trainer.max_steps=24", "trainer.validate_every_steps=8", "checkpoint.every_steps=4", "trainer.log_every_steps=1"]
    return ["task=pretrain", *QUIET, *TINY_GPT, *data, *steps, "batch.sequences=7", "batch.micro_sequences=2", "optimizer.lr=1e-2"]


def until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def wait(ranks: list[Launched], seconds: float = 240.0) -> list[int]:
    """The exit codes; what hangs is killed."""
    end = time.monotonic() + seconds
    while any(rank.running() for rank in ranks) and time.monotonic() < end:
        time.sleep(0.02)
    for rank in ranks:
        if rank.running():
            rank.kill(signal.SIGKILL)
    return [rank.wait() for rank in ranks]


def said(ranks: list[Launched]) -> str:
    return "\n".join(rank.log.read_text() for rank in ranks)


def spoken(rank: Launched) -> list[str]:
    """The lines of a rank; gloo has some of its own in torch 2.8."""
    return [line for line in rank.log.read_text().splitlines() if not line.startswith("[Gloo]")]


def slurm(**more: str) -> Callable[[int], dict[str, str]]:
    """The variables that srun gives two tasks on one machine."""
    job = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_ID": "0",
        "SLURM_NTASKS": "2",
        "SLURM_NNODES": "1",
        "SLURM_JOB_NAME": "train",
    }
    return lambda rank: {**job, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODELIST": "unresolvable", **more}


def test_srun_makes_one_run_with_one_log(arguments: list[str], launch_ranks: LaunchRanks, tmp_path: Path) -> None:
    """No run_dir: rank 0 chooses the folder. And the weights are those of torchrun's processes to the last bit."""
    tasks = launch_ranks(arguments, tmp_path / "work" / "task", variables=slurm())
    assert wait(tasks) == [0, 0], said(tasks)
    (summary,) = (tmp_path / "work" / "runs").rglob("summary.json")
    log = (summary.parent / "train.log").read_text()
    assert log.count("INFO run: ") == log.count("preflight: ") == log.count("weights: ") == 1
    assert "preflight: " in tasks[0].log.read_text()
    assert spoken(tasks[1]) == []
    assert not list((tmp_path / "work" / "runs" / ".launches").iterdir())

    ranks = launch_ranks([*arguments, f"run_dir={tmp_path}/torchrun"], tmp_path / "torchrun")
    assert wait(ranks) == [0, 0], said(ranks)
    assert same_weights(summary.parent, tmp_path / "torchrun")
    assert len(losses(summary.parent)) == 24
    again = launch_ranks([*arguments, f"run_dir={tmp_path}/torchrun"], tmp_path / "again")
    assert wait(again) == [0, 0], said(again)
    assert said(again).count("is finished already") == 1


def test_a_job_that_slurm_ends_is_queued_again_and_continues(
    arguments: list[str], launch_ranks: LaunchRanks, tmp_path: Path
) -> None:
    """SIGUSR1 reaches one task: all save, rank 0 requeues the job; the restarted job finds its folder without run_dir."""
    whole = launch_ranks([*arguments, f"run_dir={tmp_path}/whole"], tmp_path / "whole")
    assert wait(whole) == [0, 0], said(whole)
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "scontrol").write_text(f"#!/bin/sh\necho $* >> {tmp_path}/scontrol.txt\n")
    (programs / "scontrol").chmod(0o755)
    path = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}

    tasks = launch_ranks(arguments, tmp_path / "work" / "first", variables=slurm(**path))
    until(lambda: any((tmp_path / "work" / "runs").rglob("step-00000004.ckpt")))
    tasks[1].kill(signal.SIGUSR1)
    assert wait(tasks) == [3, 3], said(tasks)
    assert said(tasks).count(f"job {os.getpid()} is queued again") == 1
    assert (tmp_path / "scontrol.txt").read_text() == f"requeue {os.getpid()}\n"

    tasks = launch_ranks(arguments, tmp_path / "work" / "second", variables=slurm(SLURM_RESTART_COUNT="1"))
    assert wait(tasks) == [0, 0], said(tasks)
    assert "resume: continuing from" in tasks[0].log.read_text()
    (summary,) = (tmp_path / "work" / "runs").rglob("summary.json")
    assert same_weights(tmp_path / "whole", summary.parent)


def test_torchrun_restarts_a_run_whose_rank_was_killed(arguments: list[str], launch_ranks: LaunchRanks, tmp_path: Path) -> None:
    """torchrun itself, --max-restarts, no run_dir: one folder, and the weights of an undisturbed run to the last bit."""
    whole = launch_ranks([*arguments, f"run_dir={tmp_path}/whole"], tmp_path / "whole")
    assert wait(whole) == [0, 0], said(whole)
    work = tmp_path / "work"
    work.mkdir()
    command = [str(TORCHRUN), "--standalone", "--nproc_per_node=2", "--max-restarts=3", str(ROOT / "train.py"), *arguments]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, cwd=work, stdout=log, stderr=log) as torchrun:
        until(lambda: any((work / "runs").rglob("step-00000008.ckpt")))
        victim = next(process for process in children(torchrun.pid) if b"\0RANK=1\0" in environment(process))
        os.kill(victim, signal.SIGKILL)
        assert torchrun.wait(240) == 0, (tmp_path / "log").read_text()[-4000:]
    (folder,) = {file.parent for file in (work / "runs").rglob("config.yaml")}
    assert "resume: continuing from" in (folder / "train.log").read_text()
    assert same_weights(tmp_path / "whole", folder)
    assert losses(tmp_path / "whole") == losses(folder)


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def environment(process: int) -> bytes:
    return b"\0" + Path(f"/proc/{process}/environ").read_bytes()


@pytest.mark.parametrize("victim", [1, 0])
def test_a_hung_rank_is_named_and_the_others_end(
    victim: int, arguments: list[str], launch_ranks: LaunchRanks, tmp_path: Path
) -> None:
    """Also rank 0, which the others ask for everything."""
    run = [*arguments, "trainer.max_steps=100000", "trainer.hang_timeout=8", f"run_dir={tmp_path}/run"]
    ranks = launch_ranks(run, tmp_path / "run")
    until(lambda: bool(list_checkpoints(tmp_path / "run" / "checkpoints")))
    ranks[victim].kill(signal.SIGSTOP)
    until(lambda: not ranks[1 - victim].running(), 60)
    ranks[victim].kill(signal.SIGKILL)
    codes = wait(ranks)
    assert (codes[victim], codes[1 - victim]) == (-signal.SIGKILL, 1)
    message = ranks[1 - victim].log.read_text().split("error: ")[1]
    assert f"rank {victim} ({os.uname().nodename}, process {ranks[victim].process}" in message
    assert "does not answer for 8 seconds (trainer.hang_timeout)" in message
    assert "Traceback" not in said(ranks)


def test_a_killed_rank_is_named_and_the_others_end(arguments: list[str], launch_ranks: LaunchRanks, tmp_path: Path) -> None:
    for victim in (1, 0):
        ranks = launch_ranks([*arguments, "trainer.max_steps=100000", f"run_dir={tmp_path}/{victim}"], tmp_path / str(victim))
        until(lambda victim=victim: bool(list_checkpoints(tmp_path / str(victim) / "checkpoints")))  # type: ignore[misc]
        ranks[victim].kill(signal.SIGKILL)
        until(lambda ranks=ranks, victim=victim: not ranks[1 - victim].running(), 60)  # type: ignore[misc]
        codes = wait(ranks)
        assert codes[victim] == -signal.SIGKILL
        assert codes[1 - victim] == 1
        assert f"error: rank {victim} (" in ranks[1 - victim].log.read_text()
        assert "has ended without a message" in ranks[1 - victim].log.read_text()
        assert "Traceback" not in said(ranks)


def test_a_mistake_is_said_once_by_the_rank_that_sees_it(
    arguments: list[str], launch_ranks: LaunchRanks, corpus: Path, tmp_path: Path
) -> None:
    """A file that only one machine has wrongly; files that differ; a mistake on the command line, which all see."""
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "other.txt").write_text("another text\n" * 400)
    machines = machine_variables()

    def run(name: str, *more: str, bad: str = str(corpus)) -> tuple[list[int], list[str]]:
        ranks = launch_ranks(
            [*arguments, *more],
            tmp_path / name,
            variables=machines(),
            own=lambda rank: [
                f"run_dir={tmp_path}/{name}{rank}",
                f"cache_dir={tmp_path}/cache{rank}",
                f"data.train={bad if rank else corpus}",
            ],
        )
        return wait(ranks), [rank.log.read_text() for rank in ranks]

    codes, logs = run("bad", bad=str(tmp_path / "bad.txt"))
    assert codes == [2, 2], logs
    assert "error: " not in logs[0]
    assert "error: rank 1 (" in logs[1]
    assert "bad.txt" in logs[1]
    codes, logs = run("other", bad=str(tmp_path / "other.txt"))
    assert codes == [2, 2], logs
    assert sum("is not that of machine 0" in log for log in logs) == 1
    ranks = launch_ranks([*arguments, "optimizer.lr=-1"], tmp_path / "same")
    assert wait(ranks) == [2, 2]
    assert said(ranks).count("error: ") == 1
    ranks = launch_ranks([*arguments, "trainer.devices=4", f"run_dir={tmp_path}/many"], tmp_path / "many")
    assert wait(ranks) == [2, 2]
    assert said(ranks).count("torchrun started 2 processes on this machine") == 1


def machine_variables() -> Callable[[], Callable[[int], dict[str, str]]]:
    """Variables of two machines with a process each, on ports that differ from call to call."""
    import itertools

    ports = itertools.count(26000 + os.getpid() % 3000)

    def variables() -> Callable[[int], dict[str, str]]:
        common = {
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(next(ports)),
        }
        return lambda rank: common | {"RANK": str(rank)}

    return variables


def test_a_sweep_runs_each_job_on_all_ranks(arguments: list[str], launch_ranks: LaunchRanks, tmp_path: Path) -> None:
    swept = ["-m", *arguments, "trainer.max_steps=4", f"run_dir={tmp_path}/sweep"]
    ranks = launch_ranks([*swept, "seed=1,2"], tmp_path / "ranks")
    assert wait(ranks) == [0, 0], said(ranks)
    for seed in (1, 2):
        summary = json.loads((tmp_path / "sweep" / f"seed-{seed}" / "summary.json").read_text())
        assert summary["machine"]["devices"] == 2
    log = ranks[0].log.read_text()
    assert log.count("· done ·") == 2
    assert spoken(ranks[1]) == []


def test_runs_of_one_python_process_follow_each_other(arguments: list[str], tmp_path: Path) -> None:
    """On two devices twice, then on one as FSDP2: nothing of a run stays behind, and each trains."""
    script = tmp_path / "script.py"
    devices = {"first": ["trainer.devices=2"], "second": ["trainer.devices=2"], "fsdp": ["trainer=fsdp", "trainer.accelerator=cpu"]}
    runs = [[*arguments, "trainer.max_steps=2", *own, f"run_dir={tmp_path}/{name}"] for name, own in devices.items()]
    script.write_text(
        f"import os, torch, llm_lightning\nruns = {runs!r}\nthreads, before = torch.get_num_threads(), dict(os.environ)\n"
        "for run in runs:\n    llm_lightning.train(*run)\n    assert torch.get_num_threads() == threads\n"
        "    assert not torch.distributed.is_initialized()\n"
        "names = ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT', 'GLOO_SOCKET_IFNAME', 'TORCHELASTIC_USE_AGENT_STORE')\n"
        "assert not [name for name in names if os.environ.get(name) != before.get(name)]\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=300, env=environment | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(losses(tmp_path / "first")) == len(losses(tmp_path / "fsdp")) == 2
    assert losses(tmp_path / "first") == losses(tmp_path / "second")


# ---- two machines: network namespaces with addresses of their own, and nothing shared ----


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """The names of two network namespaces that reach each other as 10.77.0.1 and 10.77.0.2."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from hosts import hosts

    try:
        with hosts() as names:
            yield names
    except OSError as error:
        pytest.skip(f"no network namespaces here: {error}")


KILLS = int(os.environ.get("LLM_LIGHTNING_KILLS", "1"))
"""How often a process is killed; the whole suite has 5."""


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_machines_without_a_common_disk(
    strategy: str, arguments: list[str], hosts: list[str], launch_ranks: LaunchRanks, tmp_path: Path
) -> None:
    """torchrun on both. Under DDP a process of the second one is killed at random moments: the weights are the same to the last bit."""
    whole = launch_ranks(
        [*arguments, f"trainer={strategy}", "trainer.accelerator=cpu", "trainer.devices=auto", f"run_dir={tmp_path}/whole"],
        tmp_path / "whole",
    )
    assert wait(whole) == [0, 0], said(whole)
    options = ["--nnodes=2", "--nproc_per_node=1", "--master_addr=10.77.0.1", "--master_port=29531", f"--max-restarts={KILLS + 1}"]
    agents, logs = [], []
    for number, host in enumerate(hosts):
        place = tmp_path / host
        place.mkdir()
        own = [
            f"trainer={strategy}",
            "trainer.accelerator=cpu",
            "trainer.devices=auto",
            f"cache_dir={place}/cache",
            f"run_dir={place}/run",
        ]
        command = [
            "ip",
            "netns",
            "exec",
            host,
            str(TORCHRUN),
            *options,
            f"--node_rank={number}",
            str(ROOT / "train.py"),
            *arguments,
            *own,
        ]
        logs.append((tmp_path / f"{host}.log").open("w"))
        agents.append(subprocess.Popen(command, cwd=place, stdout=logs[-1], stderr=subprocess.STDOUT))
    states = tmp_path / hosts[0] / "run" / "checkpoints"
    for kill in range(KILLS if strategy == "ddp" else 0):
        reached = list_checkpoints(states)[-1:]
        until(lambda reached=reached: list_checkpoints(states)[-1:] != reached or agents[0].poll() is not None)  # type: ignore[misc]
        time.sleep(0.01 * kill)
        for process in children(agents[1].pid):
            os.kill(process, signal.SIGKILL)
    try:
        codes = [agent.wait(600) for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    text = "\n".join(Path(log.name).read_text()[-3000:] for log in logs)
    assert codes == [0, 0], text
    assert same_weights(tmp_path / "whole", tmp_path / hosts[0] / "run")
    assert losses(tmp_path / "whole") == losses(tmp_path / hosts[0] / "run")
    assert text.count("weights: ") == 1
    if strategy == "ddp":
        assert "resume: continuing from" in (tmp_path / hosts[0] / "run" / "train.log").read_text()
