"""Starts training processes quickly: imports everything once, then forks one for each request (JSON) on standard input.

A forked child is a process like any other, that can be killed at any moment; it only saves the seconds that the imports take.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import llm_lightning.run  # noqa: F401  the imports that take seconds
from llm_lightning.cli import main


def start(request: dict[str, Any]) -> int:
    """Fork a process with the arguments, environment and folder of the request; returns its id."""
    child = os.fork()
    if child:
        return child
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.setpgrp()  # its loader workers are killed with it
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv = ["train.py", *request["arguments"]]
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


for line in sys.stdin:
    request = json.loads(line)
    if "wait" in request:
        print(os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1]), flush=True)
    else:
        print(start(request), flush=True)
