"""Stands in for the worker module: ends in the way that the job's artifact id names."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

job = json.loads(Path(sys.argv[1]).read_text())
way = job["artifact"]
with open(job["ticks"], "ab") as ticks:
    ticks.write(b"..")
if way == "hang":
    Path(os.environ["BREAKING_PID"]).write_text(str(os.getpid()))
    time.sleep(600)
sys.stderr.write(f"loading\nthe last words before {way}\n")
sys.stderr.flush()
if way == "exit":
    os._exit(7)
if way == "nothing":
    sys.exit(0)
if way == "environment":
    keys = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
    found = json.dumps({key: os.environ.get(key) for key in keys})
    error = {"kind": "NotExecutableError", "message": found, "hint": "none"}
    Path(job["outcome"]).write_text(json.dumps({"error": error}))
    sys.exit(0)
os.kill(os.getpid(), getattr(signal, way))
