"""A file is replaced whole, or stays as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_lightning.atomic_files import write_atomically


def test_a_file_is_replaced_at_the_end_of_the_block(tmp_path: Path) -> None:
    target = tmp_path / "summary.json"
    target.write_text("old")
    with write_atomically(target) as partial:
        partial.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_block_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "summary.json"
    target.write_text("old")

    def write_half() -> None:
        with write_atomically(target) as partial:
            partial.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
