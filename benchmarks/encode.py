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
from pathlib import Path

from common import report

from llm_lightning.data import builtin

SIZE = float(sys.argv[1]) if len(sys.argv) > 1 else 0.25
CODE = """
import json, resource, sys, threading, time
from pathlib import Path
from llm_lightning.cli import load
from llm_lightning.data.module import prepare

own, done = [0], threading.Event()
def watch():
    while not done.wait(0.05):
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        own[0] = max(own[0], int(status["RssAnon"].split()[0]))
threading.Thread(target=watch, daemon=True).start()

config = load(sys.argv[1:])
started = time.perf_counter()
text = prepare(config, "stream", False, None)
seconds = time.perf_counter() - started
done.set()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([seconds, own[0] / 2**20, peak / 2**20, int(text.splits["train"].lengths.sum(dtype="int64"))]))
"""

documents = builtin.documents(Path("~/.cache/llm_lightning").expanduser())["text"][:]
with tempfile.TemporaryDirectory() as folder:
    corpus, written, turn = Path(folder) / "corpus.txt", 0, 0
    with corpus.open("w", encoding="utf-8") as file:
        while written < SIZE * 2**30:
            for i, text in enumerate(documents):
                written += file.write(f"{turn} {i} {' '.join(text.split())}\n")
            turn += 1
    held = Path(folder) / "held.txt"
    held.write_text("a few words to validate on\n")
    rows = []
    for document in ("line", "file"):
        given = ["data=text", f"data.document={document}", f"data.train={corpus}", f"data.validation={held}"]
        given.append(f"cache_dir={folder}/{document}")
        said = subprocess.run([sys.executable, "-c", CODE, *given], capture_output=True, text=True, check=True).stdout
        seconds, own, peak, tokens = json.loads(said.splitlines()[-1])
        megabytes = corpus.stat().st_size / 1e6
        rows.append([document, round(megabytes), tokens, seconds, megabytes / seconds / (os.cpu_count() or 1), own, peak])
report(
    "encode",
    ["a document is a", "MB", "tokens", "seconds, tokenizer training included", "MB/s a core", "peak GiB", "with mapped files"],
    rows,
)
