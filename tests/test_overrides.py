"""Text on a command line reaches the program as it was typed, and what a refusal suggests works when it is pasted."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from llm_lightning.config import saved_runs as stored
from llm_lightning.config.compose import load_config
from llm_lightning.config.overrides import quote_overrides
from llm_lightning.config.schema import Config, plain
from llm_lightning.errors import UserError

from .conftest import ROOT

TEXTS = [
    *(
        "What's new?",
        "No",
        "yes",
        "on",
        "off",
        "true",
        "12:30",
        "007",
        "1e3",
        "1_000",
        "0x1f",
        "null",
        "~",
        "inf",
        "你好",
        "😀 dog",
    ),
    *(
        "Once, there was: a (small) dog [really]",
        "Q: hi\nA:",
        "a=b",
        "{x}",
        "{a: 1}",
        "$x ${HOME} ${oc.env:HOME}",
        "${",
        "# no comment",
    ),
    *(
        "  two blanks before",
        "after ",
        "\ttab",
        'say "hi"',
        "'a' and 'b'",
        'it\'s "both"',
        "back\\slash\\",
        "\\n",
        "\\'",
        "C:\\new",
    ),
    *("[a,b]", "[", "]", "a,b", "choice(a,b)", "-", "--help", "@", "*", "!", "\\${x}", "<|user|>", "%", "a\u2028b", "é"),
]


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A folder that looks like a finished run to all that does not load its weights."""
    folder = tmp_path / "run [x] ü, it's"
    (folder / "hf").mkdir(parents=True)
    (folder / "hf" / "config.json").write_text("{}")
    OmegaConf.save(OmegaConf.create(plain(load_config(["task=finetune", "data=docs_topics"]))), folder / "config.yaml")
    return folder


@pytest.mark.parametrize("text", TEXTS)
def test_a_prompt_is_the_text_that_was_typed(text: str, finished: Path) -> None:
    assert load_config(["task=generate", f"run={finished}", f"prompt={text}"]).prompt == text
    assert load_config([f"prompt={text}"]).prompt == text  # composed by Hydra
    assert stored.load_saved_config("generate", str(finished), [f"prompt={text}"]).prompt == text  # as from Python


def test_random_prompts(finished: Path) -> None:
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choice("ab1 '\"\\${}[](),:=#~\n-é") for _ in range(rng.randint(1, 10)))
        if re.fullmatch(r"""'([^'\\]|\\.)*'|"([^"\\]|\\.)*\"""", text, re.DOTALL):
            continue  # one quoted string
        quoted = quote_overrides([f"prompt={text}"])
        assert quote_overrides(quoted) == quoted
        assert stored.load_saved_config("generate", str(finished), quoted, checked=False).prompt == text


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ("'Once upon'", "Once upon"),
        ('"Once upon"', "Once upon"),
        ("'What\\'s new?'", "What's new?"),
        ("'Q: hi\nA:'", "Q: hi\nA:"),
        ("'a' or 'b'", "'a' or 'b'"),
        ("'half", "'half"),
        ("'\"quoted\"'", '"quoted"'),
        ("'ends in \\\\'", "ends in \\"),
    ],
)
def test_a_value_that_is_one_quoted_string_is_what_is_inside(typed: str, text: str, finished: Path) -> None:
    assert load_config(["task=generate", f"run={finished}", f"prompt={typed}"]).prompt == text
    assert load_config(["task=pretrain", f"logger.project={typed}"]).logger.project == text


def test_half_a_character_is_refused(finished: Path) -> None:
    with pytest.raises(UserError, match="prompt: this is not UTF-8"):
        load_config(["task=generate", f"run={finished}", "prompt=x \ud83d"])
    with pytest.raises(UserError, match="prompt: this is not UTF-8"):
        load_config(["task=generate", f"run={finished}", "prompt=" + os.fsdecode(b"caf\xe9")])


NAMES = [
    *("train (1).csv", "d[1].csv", "[NLP] my project.csv", "données.csv", "it's.csv", "a,b.csv", "lr=0.1.csv", "#1.csv", "a b.csv"),
    *("x: y.csv", "{a}.csv", "$x.csv", "${HOME}.csv", '"q".csv', "007", "No", "back\\slash.csv", "-x.csv", "[a]"),
]


@pytest.mark.parametrize("name", NAMES)
def test_paths_are_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "[x] données, it's"
    folder.mkdir()
    (folder / name).write_text("text,label\na,b\nc,d\n")
    base = ["task=finetune", "data=files", "data.columns.label=label"]
    run_dir = f"{tmp_path}/runs of/{name.replace('${HOME}', 'x')}"  # which there is not yet, so that ${…} would be an interpolation
    config = load_config([*base, f"data.train={folder / name}", f"run_dir={run_dir}"])
    assert (config.data.train, config.run_dir) == (str(folder / name), run_dir)
    quoted = name.replace("'", "\\'")
    config = load_config([*base, f"data.dir={folder}", f"data.train={name}", f"data.validation=['{quoted}','{quoted}']"])
    assert (config.data.train, config.data.validation) == (name, [name, name])


def test_a_variable_of_the_environment_in_a_path() -> None:
    with pytest.raises(UserError, match=r"run_dir: Interpolation key 'HOME' not found; .*\$\{oc.env:NAME\}"):
        load_config(["run_dir=${HOME}/runs"])
    assert load_config(["run_dir=${oc.env:HOME}/runs"]).run_dir == f"{os.environ['HOME']}/runs"


def test_a_stored_run_has_the_names_that_it_was_given(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_lightning.runs.folder import write_config

    for name in NAMES:
        (tmp_path / name).write_text("text,label\na,b\nc,d\n")
    names = [f"{tmp_path}/{name}" for name in NAMES]
    base = load_config(["task=finetune", "data=files", "data.columns.label=label", f"data.train={tmp_path / 'a b.csv'}"])
    for text in ("1e3", "x ${", "1_000", "null", "2020-01-01", "${HOME}"):
        data = replace(base.data, train=names, validation=names[0], columns=replace(base.data.columns, text=text, label="0x1f"))
        write_config(finished, replace(base, data=data, prompt=text))
        config = stored.load_saved_config("predict", str(finished), ["batch.sequences=3"], checked=False)
        assert (config.data, config.prompt, config.batch.sequences) == (data, text, 3)


def test_lists_patterns_null_and_interpolations_keep_their_meaning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.csv", "b (1).csv", "it's.csv", "c,d.csv"):
        (tmp_path / name).write_text("text,label\na,b\nc,d\n")
    base = ["task=finetune", "data=files", "data.columns.label=label"]

    def trains(value: str) -> Any:
        return load_config([*base, f"data.train={value}"]).data.train

    assert trains("[a.csv,b (1).csv,it's.csv]") == ["a.csv", "b (1).csv", "it's.csv"]
    assert trains("['a.csv', \"c,d.csv\"]") == ["a.csv", "c,d.csv"]
    assert trains("'*.csv'") == "*.csv"
    assert trains("c,d.csv") == "c,d.csv"
    assert load_config([*base, "data.train=a.csv", "data.validation=null", "data.dir=null"]).data.validation is None
    assert re.fullmatch(r"runs/\d{4}/x y", str(load_config(["run_dir=runs/${now:%Y}/x y"]).run_dir))
    assert load_config(["data.labels=[a b,it's,1]"]).data.labels == ["a b", "it's", "1"]
    assert load_config([*base, "data.train=a.csv", "data.columns.text=#1 (en)"]).data.columns.text == "#1 (en)"


@pytest.mark.parametrize(
    ("value", "mapping"),
    [
        ('{"0": "neg", "1": "pos"}', {0: "neg", 1: "pos"}),
        ("{'0': 'neg', '1': 'pos'}", {0: "neg", 1: "pos"}),
        ("{0: neg, 1: pos,}", {0: "neg", 1: "pos"}),
        ("{a/b: x, c(d): it's, d: no}", {"a/b": "x", "c(d)": "it's", "d": "no"}),
        ("{é: x, 日: 'y, ${z}'}", {"é": "x", "日": "y, ${z}"}),
        ('{"a:b": "it\'s", "\\\\": "$x"}', {"a:b": "it's", "\\": "$x"}),
        ("{neg: Negative}", {"neg": "Negative"}),
    ],
)
def test_a_mapping_of_texts_in_the_spellings_that_people_have(value: str, mapping: dict[Any, str]) -> None:
    quoted = quote_overrides([f"data.labels={value}"])
    assert quote_overrides(quoted) == quoted
    assert load_config([f"data.labels={value}"]).data.labels == mapping


@pytest.mark.parametrize("value", ['{"用户": "user", "bot (v2)": "assistant"}', "{用户: user, bot (v2): assistant}"])
def test_roles_in_any_script(value: str) -> None:
    base = ["task=finetune", "objective=instruction", "data=chat", "data.train=README.md"]
    assert load_config([*base, f"data.roles={value}"]).data.roles == {"用户": "user", "bot (v2)": "assistant"}


@pytest.mark.parametrize(
    "value", ['{"n_layer": 2, "tie_word_embeddings": false, "x": null}', "{'n_layer': 2, 'tie_word_embeddings': False, 'x': None}"]
)
def test_settings_of_a_model_as_json_and_python_spell_them(value: str) -> None:
    from llm_lightning.config.overrides import parse_overrides

    assert parse_overrides([f"model.config={value}"]) == {"model.config": {"n_layer": 2, "tie_word_embeddings": False, "x": None}}
    assert load_config(["task=pretrain", 'model.config={"n_layer": 2}']).model.config["n_layer"] == 2


def test_a_group_that_is_null_is_refused() -> None:
    with pytest.raises(UserError, match="group override must be a string"):
        load_config(["task=pretrain", "logger=null"])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("1e-3,1e-4", "optimizer.lr=1e-3,1e-4: several values are a sweep, train.py -m …; a list is optimizer.lr=[1e-3,1e-4]."),
        ("0,001", "optimizer.lr=0,001: a decimal number has a point, optimizer.lr=0.001; several values"),
    ],
)
def test_several_values_without_a_sweep(value: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        load_config(["task=pretrain", f"optimizer.lr={value}"])


@pytest.mark.parametrize("override", ["data.labels={neg,pos}", "optimizer.betas=(0.9,0.95)", "model.config={hidden_size=64}"])
def test_what_is_no_list_or_mapping_is_shown_one(override: str) -> None:
    with pytest.raises(UserError, match=r"a list is \[a,b\], a mapping \{a: 1, b: 2\}"):
        load_config(["task=pretrain", override])


def test_a_name_that_begins_with_a_tilde(tmp_path: Path) -> None:
    (tmp_path / "~old.csv").write_text("text,label\na,b\nc,d\n")
    base = ["task=finetune", "data=files", "data.columns.label=label", f"data.dir={tmp_path}"]
    assert load_config([*base, "data.train=~old.csv", "run_dir=~x"]).data.train == "~old.csv"
    with pytest.raises(UserError, match=r"no such file; did you mean '~old\.csv'"):
        load_config([*base, "data.train=~odl.csv"])


def test_stop_texts(finished: Path) -> None:
    base = ["task=generate", f"run={finished}", "prompt=a"]
    assert load_config([*base, 'generate.stop=["\\n"]']).generate.stop == ["\n"]
    for text, stop in {"###": "###", '"\\n"': "\n", "User:": "User:", "a b": "a b"}.items():
        assert load_config([*base, f"generate.stop={text}"]).generate.stop == [stop]
    assert load_config([*base, "generate.stop=['\\n',###,User:,No,007]"]).generate.stop == ["\\n", "###", "User:", "No", "007"]


def test_sweeps_keep_their_meaning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert quote_overrides(["-m", "data.train=a.csv,b (1).csv"])[1] == 'data.train=a.csv,"b (1).csv"'
    assert quote_overrides(["-m", "data.train=choice(a,b)", "seed=1,2"])[1:] == ["data.train=choice(a,b)", "seed=1,2"]
    assert quote_overrides(["-m", "data.train=[a,b c],[d]"])[1] == "data.train=[a,'b c'],[d]"
    (tmp_path / "a.csv,b (1).csv").touch()
    assert quote_overrides(["-m", "data.train=a.csv,b (1).csv"])[1] == 'data.train="a.csv,b (1).csv"'


@pytest.mark.parametrize("value", ["it's", "a(1)", "x: y", 'a "b" c', "[a", "a,b", "back\\", "'half", "#1 {", "$x (", "a\nb ]"])
def test_what_a_refusal_suggests_works_when_pasted(value: str) -> None:
    """Settings of open groups may be text; Hydra's grammar is all that knows them."""
    from hydra.errors import OverrideParseException

    from llm_lightning.config.messages import explain
    from llm_lightning.config.overrides import parse_overrides

    key = "objective.metric"
    try:
        parsed = parse_overrides([f"{key}={value}"])
    except OverrideParseException as error:
        for in_shell in (True, False):
            message = explain(error, in_shell)
            if value.startswith(("[", "{")):
                assert "a list is [a,b]" in message
                continue
            suggestion = message.partition("write it as ")[2].removesuffix(".")
            (argument,) = shlex.split(suggestion) if in_shell else [yaml.safe_load(json.dumps(eval(suggestion)))]
            assert parse_overrides([argument]) == {key: value}
    else:
        assert parsed == {key: value} or value in ("a,b", "x: y")


def test_prompts_of_files(finished: Path, tmp_path: Path) -> None:
    from llm_lightning.inference.text_rows import read_prompt

    content = "  Q: it's {x}\r\n\tA: ${y}\n\n"
    (tmp_path / "p (1).txt").write_bytes(content.encode())
    config = load_config(["task=generate", f"run={finished}", f"prompt_file={tmp_path}/p (1).txt"])
    assert read_prompt("prompt_file", str(config.prompt_file)) == content
    (tmp_path / "latin.txt").write_bytes(b"one\ncaf\xe9\n")
    with pytest.raises(UserError, match=r"latin.txt, line 2: byte 0xe9 is not UTF-8"):
        read_prompt("prompt_file", f"{tmp_path}/latin.txt")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(UserError, match=r"empty.txt: the file is empty"):
        read_prompt("prompt_file", f"{tmp_path}/empty.txt")
    for wrong, message in [
        ([f"prompt_file={tmp_path}"], "this is a folder"),
        ([f"prompt_file={tmp_path}/latn.txt"], "did you mean 'latin.txt'"),
        (["prompt_file=x", "prompt=y"], "prompt and prompt_file are both set"),
        ([], "prompt_file=<file>"),
        (["prompt=x", "out=said.jsonl"], "written to the terminal"),
    ]:
        with pytest.raises(UserError, match=message):
            load_config(["task=generate", f"run={finished}", *wrong])


@pytest.mark.parametrize("environment", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_a_shell_s_words_and_input(environment: dict[str, str]) -> None:
    """What the process of a shell gets: arguments as bytes, and a prompt on standard input."""
    code = (
        "import sys; from llm_lightning.config.overrides import parse_overrides\n"
        "from llm_lightning.inference.text_rows import read_prompt\n"
        "print(ascii([parse_overrides(sys.argv[1:]), read_prompt('prompt', '-')]))"
    )
    typed = "prompt='tis 你好, é: (x)\n"
    result = subprocess.run(
        [sys.executable, "-c", code, typed],
        input="Q: é\r\n\n".encode(),
        capture_output=True,
        cwd=ROOT,
        env=os.environ | environment,
    )
    assert result.returncode == 0, result.stderr.decode()
    assert eval(result.stdout) == [{"prompt": typed.removeprefix("prompt=")}, "Q: é\r\n\n"]


def test_the_run_of_a_stored_task_and_its_files(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "rows [1].jsonl").write_text('{"text": "a"}')
    config: Config = load_config(
        ["task=predict", f"run={finished}", f"data.predict={tmp_path}/rows [1].jsonl", f"out={tmp_path}/o [1], é.jsonl"]
    )
    assert config.run_folder == finished
    assert config.out == f"{tmp_path}/o [1], é.jsonl"
    for typed in ("-", "'-'", "/dev/stdin"):
        assert load_config(["task=predict", f"run={finished}", f"data.predict={typed}"]).data.predict == typed.strip("'")
    for wrong, message in [
        (f"data.predict={tmp_path}/row [1].jsonl", r"did you mean 'rows \[1\].jsonl'"),
        ("out=/proc/x/said.jsonl", "out=/proc/x/said.jsonl: its folder cannot be written"),
        ("out=said.csv", "out=said.csv: expected a name that ends in .jsonl, .parquet"),
        ("data.predictt=x", r"data.predictt: there is no such key.*Did you mean 'data.predict'"),
        ("batch.sequences=ten", "batch.sequences"),
    ]:
        with pytest.raises(UserError, match=message):
            load_config(["task=predict", f"run={finished}", "data.predict=-", wrong])


def test_messages_for_python_have_no_advice_for_a_shell() -> None:
    with pytest.raises(UserError) as error:
        load_config(["objective.metric=a(1"])
    assert "write it as 'objective.metric=\"a(1\"'" in str(error.value)


def test_a_prompt_with_an_apostrophe_from_the_shell(
    command: Callable[..., subprocess.CompletedProcess[str]], finished: Path
) -> None:
    result = command("task=generate", f"run={finished}", "prompt=What's new?", "generate.heat=1")
    assert result.returncode == 2
    assert result.stderr.strip().startswith("error: generate.heat: there is no such key")


def test_a_home_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/proc/nobody")
    with pytest.raises(UserError, match=r"cache_dir=~/.cache/llm_lightning: the folder cannot be written .*cache_dir=<folder>"):
        load_config(["task=pretrain"])
    assert load_config(["task=pretrain", f"cache_dir={tmp_path}/a b, c"]).cache_dir == f"{tmp_path}/a b, c"
    assert list(tmp_path.iterdir()) == []
    monkeypatch.chdir("/proc")
    with pytest.raises(UserError, match=r"run_dir is not set, and runs/ cannot be written here .*run_dir=<folder>"):
        load_config(["task=pretrain", f"cache_dir={tmp_path}"])


def test_a_home_that_cannot_be_written_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['train.py', 'task=pretrain']\n"
        "from llm_lightning.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert stop.code == 2\n"
        "heavy = {'torch', 'lightning', 'transformers', 'datasets', 'pandas', 'wandb', 'pyarrow', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    environment = os.environ | {"HOME": "/dev/null", "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=tmp_path, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert "cache_dir=<folder>" in result.stderr


def test_names_and_text_are_utf8_in_any_locale(command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    (tmp_path / "données").mkdir()
    (tmp_path / "données" / "avis.csv").touch()
    asked = f"data.train={tmp_path}/données/avi.csv"
    result = command(
        "task=finetune", "data=files", "data.columns.label=l", asked, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"
    )
    assert result.returncode == 2
    assert result.stderr.strip() == f"error: {asked}: no such file; did you mean 'avis.csv'."
