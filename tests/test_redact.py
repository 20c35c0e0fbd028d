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
    }
    secrets = [*planted.values(), "pa55word"]
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
            f"run_dir={tmp_path}",
        ),
        f"prompt='{' '.join(planted.values())} https://me:pa55word@host/x'",
        WANDB_MODE="offline",
        **planted,
    )
    assert result.returncode == 0, result.stderr
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"config.yaml", "train.log", "report.html", "summary.json"} <= {file.name for file in files}
    assert any(file.suffix == ".wandb" for file in files)
    assert any(file.suffix == ".ckpt" for file in files)
    assert [(file.name, secret) for file in files for secret in secrets if secret.encode() in file.read_bytes()] == []
    assert "me:pa55word" not in result.stdout + result.stderr
    assert "https://***@host/x" in (tmp_path / "config.yaml").read_text()
