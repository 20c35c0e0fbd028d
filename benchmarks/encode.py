"""Rate and memory of encoding a corpus: `python benchmarks/encode.py [GiB, 0.25 by default]`.

The corpus is the built-in one, over and over, with a number in each document so that no two are alike. Memory is the process's own
(anonymous) at its peak: pages of files that are mapped into it come and go as the kernel has room, and are counted apart.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

from settings import pick


def encode(arguments: list[str]) -> None:
    """Encode the data that the arguments name, and print [seconds, peak GiB, peak GiB with mapped files, tokens]."""
    from llm_lightning.config.compose import load_config
    from llm_lightning.data.prepare import prepare_dataset

    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            peak[0] = max(peak[0], int(status["RssAnon"].split()[0]))

    threading.Thread(target=watch, daemon=True).start()
    config = load_config(arguments)
    started = time.perf_counter()
    dataset = prepare_dataset(config, "stream", None)
    seconds = time.perf_counter() - started
    done.set()
    tokens = int(dataset.splits["train"].lengths.sum(dtype="int64"))
    print(json.dumps([seconds, peak[0] / 2**20, getrusage(RUSAGE_SELF).ru_maxrss / 2**20, tokens]))


def main() -> None:
    from common import report

    from llm_lightning.data import builtin

    gib = float(sys.argv[1]) if len(sys.argv) > 1 else pick(0.25, 0.001)
    documents = builtin.documents(Path("~/.cache/llm_lightning").expanduser())["text"][:]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        corpus, written, turn = Path(folder) / "corpus.txt", 0, 0
        with corpus.open("w", encoding="utf-8") as file:
            while written < gib * 2**30:
                for i, text in enumerate(documents):
                    written += file.write(f"{turn} {i} {' '.join(text.split())}\n")
                    if written >= gib * 2**30:
                        break
                turn += 1
        held_out = Path(folder) / "held_out.txt"
        held_out.write_text("a few words to validate on\n")
        for document in ("line", "file"):
            arguments = ["data=text", f"data.document={document}", f"data.train={corpus}", f"data.validation={held_out}"]
            command = [sys.executable, __file__, "encode", *arguments, f"cache_dir={folder}/{document}"]
            output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            seconds, own, peak, tokens = json.loads(output.splitlines()[-1])
            megabytes = corpus.stat().st_size / 1e6
            rows.append([document, round(megabytes), tokens, seconds, megabytes / seconds / (os.cpu_count() or 1), own, peak])
    report(
        "encode",
        ["a document is a", "MB", "tokens", "seconds, tokenizer training included", "MB/s a core", "peak GiB", "with mapped files"],
        rows,
    )


if __name__ == "__main__":
    encode(sys.argv[2:]) if sys.argv[1:2] == ["encode"] else main()
