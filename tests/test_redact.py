"""No secret of the environment, an address or a command line is in any file of a run."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_lightning.config.redaction import redact

from .conftest import TINY_BERT


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("data.train=https://me:pa55word@host/x.csv", "data.train=https://***@host/x.csv"),
        ("https://host/x?part=1&X-Amz-Signature=abc%2F", "https://host/x?part=1&X-Amz-Signature=***"),
        ("++model.config={hub_token: abc, n_layer: 2}", "++model.config={hub_token: ***, n_layer: 2}"),
        ("found hf_abcdefghijklmnopqrstuv here", "found *** here"),
        ("the-planted-value again", "*** again"),
        ("batch.tokens=100 model.tokenizer.kind=bpe model.config.eos_token=[EOS]", None),
        ("loss at token: 3 of git@github.com:a/b, s3://bucket/key", None),
    ],
)
def test_texts(text: str, kept: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "the-planted-value")
    assert redact(text) == (text if kept is None else kept)


def test_containers() -> None:
    given = {"token": "abc", "eos_token": "[E]", "rate": 1e-4, "files": ["https://a:b@host", 3], "password": None}
    assert redact(given) == {"token": "***", "eos_token": "[E]", "rate": 1e-4, "files": ["https://***@host", 3], "password": None}
    given = {"password": 12345678, "use_auth_token": True, "github_token": "x", "session_token": "y"}
    assert redact(given) == {"password": "***", "use_auth_token": True, "github_token": "***", "session_token": "***"}


def test_no_file_of_a_run_has_a_secret(
    reviews: Path, cache: Path, command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    planted = {
        "HF_TOKEN": "hf_plantedplantedplanted01",
        "WANDB_API_KEY": "b" * 8 + "c" * 32,
        "AWS_SECRET_ACCESS_KEY": "d/planted+one",
        "GITHUB_TOKEN": "planted-for-github",
        "OPENAI_API_KEY": "planted-for-openai",
        "SLACK_BOT_TOKEN": "planted-for-slack",
        "DB_PASSWORD": "planted-for-database",
        "my_service_secret": "planted-in-lower-case",
    }
    addresses = {
        "DATABASE_URL": "postgres://me:planted-in-url@host/x",
        "HTTPS_PROXY": "http://me:planted-in-proxy@127.0.0.1:9",
        "PIP_INDEX_URL": "https://me:planted-in-index@host/simple",
    }
    home = tmp_path / "home"
    files = {  # of programs that libraries of ours may read
        home / ".netrc": "machine host login me password planted-in-netrc",
        home / ".git-credentials": "https://me:planted-in-git@host",
        home / ".pypirc": "[pypi]\npassword = planted-in-pypirc",
        home / ".aws" / "credentials": "[default]\naws_secret_access_key = planted-in-aws",
        home / ".kaggle" / "kaggle.json": '{"username": "me", "key": "planted-in-kaggle"}',
        home / ".config" / "wandb" / "settings": "[default]\napi_key = planted-in-wandb",
        home / ".cache" / "huggingface" / "token": "planted-in-hub",
    }
    for file, text in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    secrets = [*planted.values(), "pa55word", "planted-in-"]
    result = command(
        *(
            "task=finetune",
            "data=files",
            "data.columns.text=body",
            "data.columns.label=stars",
            "trainer=cpu",
            "trainer.max_steps=2",
        ),
        *(
            *TINY_BERT,
            "logger=wandb",
            "trainer.progress=none",
            f"data.train={reviews}",
            f"cache_dir={cache}",
            f"run_dir={tmp_path}/run",
        ),
        f"prompt='{' '.join(planted.values())} https://me:pa55word@host/x?X-Amz-Signature=planted-in-signature'",
        WANDB_MODE="offline",
        HOME=str(home),
        **planted,
        **addresses,
    )
    assert result.returncode == 0, result.stderr
    written = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert {"config.yaml", "train.log", "report.html", "summary.json"} <= {file.name for file in written}
    assert any(file.suffix == ".wandb" for file in written)
    assert any(file.suffix == ".ckpt" for file in written)
    assert [(file.name, secret) for file in written for secret in secrets if secret.encode() in file.read_bytes()] == []
    assert "me:pa55word" not in result.stdout + result.stderr
    assert "https://***@host/x?X-Amz-Signature=***" in (tmp_path / "run" / "config.yaml").read_text()
