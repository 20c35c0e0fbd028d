"""Every command and every piece of Python in README.md and docs/ does what it says.

Commands are collected from the pages: those in code blocks, and those in the text that begin with a program, with `…` (the rest of a
command) or with a setting. Each is composed and checked, with small stand-ins for the files, runs and models that it names. Each is also
run, for two steps on small data, unless `NOT_RUN` has a reason. So a new command is tested without being named here.
"""

from __future__ import annotations

import ast
import io
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import llm_lightning
from llm_lightning.config import compose
from llm_lightning.config.compose import load_config
from llm_lightning.config.schema import Config
from llm_lightning.errors import UserError

from .conftest import QUIET, ROOT, TINY_BERT, TINY_GPT

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(path for path in DOCS.rglob("*.md") if path.parent.name != "tutorials")]
"""The pages whose commands are run one by one; those of a tutorial are run in their order by tests/end_to_end/test_tutorials.py."""
PROGRAMS = ("python", "make", "torchrun", "srun", "cat", "llm-lightning")
NOT_RUN = {
    r"data=(hub|sst2|imdb|ag_news)\b|recipe=|<minilm>|\bmodel=(minilm|bert_base|distilbert)\b": "needs the hub, or a data set",
    r"torchrun|srun|trainer=(ddp|fsdp|gpu)|trainer\.devices=[2-9]": "needs several devices; tests/end_to_end/test_launchers.py",
    r"(^|\s)-m task|(^|\s)-m recipe|… -m|launcher=": "a sweep starts a process a job; tests/end_to_end/test_sweeps.py",
    r"task=chat": "reads what somebody types; tests/inference/test_generate.py",
    r"benchmarks/": "measures for minutes; tests/test_benchmarks.py",
    r"data\.folds=": "trains six models; tests/end_to_end/test_label_errors.py",
    r"resume=runs/mine/checkpoints/step-00001000": "needs a run of a thousand steps; tests/end_to_end/test_chaos.py",
    r"<your arguments>|--help": "prints and trains nothing; tests/test_config.py",
    r"make (demo|setup|test|bench|lint|types|format|help|dashboard)": "installs packages, or needs a key; its commands are looked at",
}
"""Commands that are composed and checked only, by a pattern of their text, and why."""
REVIEWS = ["task=finetune", "data=files", "data.train=reviews.csv", "data.columns.text=body", "data.columns.label=stars"]
SMALL = [
    *QUIET,
    "trainer.max_steps=2",
    "trainer.max_epochs=null",
    "batch.sequences=8",
    "data.block_size=64",
    "model.tokenizer.vocab_size=400",
]


@dataclass(frozen=True)
class Command:
    """A command line of a page."""

    page: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"


def name_page(page: Path) -> str:
    """Return the path of a page below docs/, which no other page has."""
    return (page.relative_to(DOCS) if page.is_relative_to(DOCS) else page.relative_to(ROOT)).as_posix()


def blocks(page: Path) -> Iterator[list[str]]:
    """Yield the indented and fenced code blocks of a page, as lines without their indent."""
    block: list[str] = []
    fenced = False
    for line in [*page.read_text(encoding="utf-8").splitlines(), "end"]:
        if line.startswith("```"):
            fenced = not fenced
        inside = fenced or line.startswith("    ")
        if (inside or (block and not line)) and not line.startswith("```"):
            block.append(line if fenced else line[4:])
        elif block:
            yield block
            block = []


def commands() -> list[Command]:
    collected: dict[str, Command] = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        found = []
        for block in blocks(page):
            for line in "\n".join(block).replace("\\\n", " ").splitlines():
                line = re.split(r"\s+#", line.removeprefix("$ "))[0].strip()
                if line.startswith(PROGRAMS):
                    found.append(re.sub(r"\s+", " ", line))
        outside = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
        found += [span for span in re.findall(r"`([^`\n]+)`", outside) if is_command(span)]
        for line in found:
            collected.setdefault(line, Command(name_page(page), line))
    return list(collected.values())


def is_command(span: str) -> bool:
    words = span.split()
    if words[0] in PROGRAMS:
        return len(words) > 1 and words[-1] != "train.py"
    settings = sum(bool(re.match(r"[\w./]+=", word)) for word in words)
    return settings > 0 and (words[0] in ("…", "-m") or (settings > 1 and bool(re.match(r"(task|recipe|data)=", words[0]))))


def not_run(text: str) -> str | None:
    return next((reason for pattern, reason in NOT_RUN.items() if re.search(pattern, text)), None)


def arguments(command: str) -> list[str]:
    """The words behind train.py, with stand-ins for what is in <> and for …."""
    text = command.removeprefix("…").strip()
    text = text.rpartition("train.py")[2] if "train.py" in text else text
    writes = re.search(r"task=(generate|chat)|evaluate\.(text|choices)|audit\.(crows_pairs|stereoset|classifier)", text)
    run = "runs/writer" if writes else "runs/reader"
    text = re.sub(r"runs/<date>/<run>|<run( folder)?>|(?<=run=)…", run, text)
    text = text.replace("<task>", "finetune").replace("<your arguments>", "")
    text = text.replace("<classifier>", "runs/reader")
    text = re.sub(r"<(hub )?name or folder>|<minilm>|<export>", "runs/reader/hf", text).replace("=<name>", "=some/films")
    text = text.replace("data=conll data.dir=<folder>", "data=conll data.dir=tagged")
    text = re.sub(r"(?<=data\.dir=)<[^>]+>|(?<=out=)<[^>]+>|<ag_news>", "data", text)
    text = re.sub(r"<[^>]+>", "data/train.csv", text).replace("data.dir=data/sst2", "data.dir=data")
    text = re.sub(r"(data\.(train|test|validation))=…", r"\1=reviews.csv", text).replace(
        "model.name_or_path=…", "model.name_or_path=runs/reader/hf"
    )
    text = (
        text.replace("columns.text=…", "columns.text=body")
        .replace("columns.label=…", "columns.label=stars")
        .replace("data.dir=…", "data.dir=data")
    )
    words = [word for word in shlex.split(text) if not word.startswith("…") and word not in ("-m", "&&") and "=" in word]
    words = [first_choice(word) for word in words]
    if any(word.startswith("sweep=optuna") for word in words):
        words = [word for word in words if "interval(" not in word]
    base = list(REVIEWS) if "data=files" in words or not any(word.startswith(("task=", "recipe=")) for word in words) else []
    if any(word.startswith(("data=chat", "data=alpaca", "data.columns.text=prompt")) for word in words):
        base = ["task=finetune", "objective=instruction", "data.train=talks.jsonl"]
    if "model/adapter" in text and "model.name_or_path" not in text:
        base.append("model.name_or_path=runs/reader/hf")
    named = {word.partition("=")[0] for word in words}
    return [*(word for word in base if word.partition("=")[0] not in named), *words]


def first_choice(word: str) -> str:
    """The first of the values that a sweep goes through."""
    key, _, value = word.partition("=")
    return f"{key}={value.split(',')[0]}" if "," in value and value[0] not in "[{'\"" and not re.match(r"\w+\(", value) else word


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory, corpus: Path, reviews: Path, cache: Path) -> Path:
    """A folder with what the pages name: texts, tables, and two runs, of a model that reads and of one that writes."""
    from llm_lightning.run import run

    folder = tmp_path_factory.mktemp("documentation")
    (folder / "corpus").mkdir()
    (folder / "books").mkdir()
    (folder / "data").mkdir()
    for name in ("corpus/a.txt", "books/a.txt", "texts.txt"):
        shutil.copy(corpus, folder / name)
    for name in ("reviews.csv", "new.csv", "data/train.csv"):
        shutil.copy(reviews, folder / name)
    (folder / "[NLP] my project").mkdir()
    for name in ("[NLP] my project/train (1).csv", "a.csv", "b (1).csv"):
        (folder / name).write_text(reviews.read_text().replace("body", "#1" if "NLP" in name else "body", 1))
    (folder / "issues.csv").write_text("file,row,label,suggested_label,score\nreviews.csv,2,bad,good,0.01\n")
    (folder / "prompt.txt").write_text("the cat")
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
    talk: dict[str, Any] = {"conversations": turns, "prompt": "hi", "completion": "hello", "instruction": "hi", "response": "hello"}
    talk["contents"] = [{"role": "user", "parts": [{"text": "hi"}]}, {"role": "model", "parts": [{"text": "hello"}]}]
    talk["data"] = ["hi", "hello"]
    (folder / "talks.jsonl").write_text(f"{json.dumps(talk)}\n" * 20)
    for name in ("MSRpar.train.tsv", "MSRpar.test.tsv", "test_2016_flickr.en", "test_2016_flickr.de"):
        (folder / "data" / name).write_text("what the check of a command looks for\n")
    shutil.copytree(ROOT / "examples" / "audit", folder / "examples" / "audit")
    (folder / "tagged").mkdir()
    for name in ("train.conll", "tagged/train.conll", "data/train.conll"):
        (folder / name).write_text("Ann\tB-person\nsleeps\tO\n\n" * 30)
    (folder / "prompts.jsonl").write_text('{"text": "the cat"}\n{"text": "a dog"}\n')
    (folder / "questions.jsonl").write_text('{"text": "the cat", "choices": ["sees rain.", "x"], "label": 0}\n' * 2)
    words = [*SMALL, f"cache_dir={cache}"]
    table = [f"data.train={folder}/reviews.csv" if word.startswith("data.train") else word for word in REVIEWS]
    run(load_config([*table, *words, *TINY_BERT, f"run_dir={folder}/runs/reader"]))
    plain = ["data=text", f"data.train={folder}/corpus/a.txt", "data.document=line"]
    run(load_config(["task=pretrain", *words, *TINY_GPT, *plain, f"run_dir={folder}/runs/writer"]))
    return folder


@pytest.fixture
def inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


COMMANDS = commands()
TRAIN = [
    command
    for command in COMMANDS
    if not command.text.startswith("make") and not re.search(r"benchmarks/|-m llm_lightning", command.text)
]
REFUSED = {"optimizer.weigth_decay=0.1"}
"""Settings that a page shows to be refused."""


def test_the_pages_have_commands() -> None:
    """The collector reads blocks, continued lines, spans in tables, and leaves out what is no command."""
    texts = [command.text for command in COMMANDS]
    assert "cat texts.txt | python train.py task=predict run=<run> data.predict=- out=said.parquet" in texts
    assert "python train.py task=pretrain run_dir=runs/mine" in texts  # with what it does behind it
    assert "… model/adapter=lora" in texts
    assert "make report RUNS=runs" in texts
    assert any("'optimizer.lr=tag(log,interval(1e-5,1e-3))' batch.sequences=16,32,64" in text for text in texts)
    assert not any(text.startswith("python train.py`") or "\n" in text for text in texts)
    assert len(texts) > 50
    unused = [pattern for pattern in NOT_RUN if not any(re.search(pattern, text) for text in texts)]
    assert unused == [], "no command is left out for this reason any more"


@pytest.mark.parametrize("command", TRAIN, ids=str)
def test_a_command_is_composed(command: Command, inside: Path) -> None:
    """Its groups, keys and values exist, and fit each other and the files."""
    words = arguments(command.text)
    if REFUSED & set(words):
        with pytest.raises(UserError) as error:
            load_config(words)
        assert f"error: {error.value}" in (ROOT / "README.md").read_text(encoding="utf-8")
        return
    try:
        load_config(words)
    except UserError as error:
        if "pip install" not in str(error) and "resume=runs/mine" not in str(error):  # a package, or a checkpoint, that is not here
            raise


def small(words: list[str], cache: Path) -> Config:
    """The config of a command that does the same on small data, for two steps."""
    config = load_config(words)
    words = [*words, f"cache_dir={cache}"]
    if config.task not in ("pretrain", "finetune", "check"):
        return load_config(words)
    if config.data.source == "docs":
        words += ["data=text", "data.train=corpus/a.txt", "data.document=line"]
    if config.data.source == "docs_topics":
        words += REVIEWS[1:]
    tiny = {"encoder": TINY_BERT, "decoder": TINY_GPT}.get(str(config.model.family), []) if config.model.architecture else []
    return load_config([*words, *tiny[1:], *SMALL, *([] if config.run_dir else [f"run_dir=runs/{abs(hash(tuple(words)))}"])])


@pytest.mark.parametrize("command", [c for c in TRAIN if not_run(c.text) is None and not REFUSED & set(arguments(c.text))], ids=str)
def test_a_command_runs(command: Command, inside: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_lightning.run import run

    if command.text.startswith("cat "):
        file = inside / command.text.split()[1]
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(file.read_bytes()), encoding="utf-8"))
    config = small(arguments(command.text), cache)
    run(config)
    if config.task in ("pretrain", "finetune"):
        assert (Path(str(config.run_dir)) / "hf" / "config.json").is_file()
    elif config.out is not None:
        assert Path(config.out).exists()


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.text.startswith("make")], ids=str)
def test_a_target_of_make_exists_and_its_commands_are_composed(command: Command, inside: Path) -> None:
    done = subprocess.run([*shlex.split(command.text), "-n"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        if "train.py" in line:
            load_config(arguments(line.replace("runs/demo/pretrain", "runs/reader")))  # which the command before makes


@pytest.mark.parametrize("command", [c for c in COMMANDS if "-m llm_lightning" in c.text and "dashboard" not in c.text], ids=str)
def test_a_module_runs(command: Command, inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(re.sub(r"<[^>]+>", "runs/reader", command.text))
    module = words[words.index("-m") + 1]
    monkeypatch.setattr(sys, "argv", words[words.index("-m") + 1 :])
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=False)
    except SystemExit as end:
        assert not end.code  # noqa: PT017
    assert "--csv" not in words or Path(words[words.index("--csv") + 1]).is_file()


@pytest.mark.parametrize("command", [c for c in COMMANDS if "benchmarks/" in c.text], ids=str)
def test_a_benchmark_exists(command: Command) -> None:
    file = next(word for word in command.text.split() if word.startswith("benchmarks/"))
    assert (ROOT / file).is_file()


def snippets() -> list[Any]:
    """The blocks of Python, each after those before it on its page."""
    found = []
    for page in PAGES:
        for block in blocks(page):
            if re.match(r"(from|import|def|class) ", next(iter(block), "")):
                text = "\n".join(block)
                found.append(pytest.param(text, id=f"{name_page(page)}: {next(line for line in block if line)}"))
    return found


@pytest.mark.parametrize("text", snippets())
def test_python_runs(text: str, inside: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train: Callable[..., dict[str, Any]] = llm_lightning.train

    def train_small(*words: str) -> dict[str, Any]:
        if not_run(" ".join(words)) is None:
            return train(*words, *SMALL, *TINY_BERT, f"cache_dir={cache}")
        load_config(list(words))
        return {}

    monkeypatch.setattr(llm_lightning, "train", train_small)
    monkeypatch.setattr(compose, "load_config", lambda words: small(words, cache))
    text = re.sub(r'"runs/<date>/<run>"', '"runs/writer"', text)
    program = ast.parse(f"from __future__ import annotations\n{text}")
    exec(compile(program, "documentation", "exec"), {"__name__": "documentation"})
