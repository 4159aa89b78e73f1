"""Upload a folder of three shards, and do the same with `hf upload`, in turns: seconds and memory of both.

Both use the same Python and Git-LFS, and each upload has an empty test Hub of its own. This Python has no transformers:
in a job, loading configuration and tokenizer takes some seconds more.

    python -m benchmarks.upload_report [MEGABYTES [PAIRS]]        (make upload-report)
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm_bridge.remote import attempt_dir, node_archive
from testing import paths
from testing.weights import safetensors

MEGABYTES, PAIRS = 1200, 4
REPO, TOKEN = "me/model", "hf_measured"
# File by its only tensor.
SHARDS = {f"tensor{number}": f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)}


def make_model(folder: Path, megabytes: int) -> Path:
    """Write a folder that looks like a model of three shards, and return it."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    for tensor, name in SHARDS.items():
        (folder / name).write_bytes(safetensors(megabytes * 1_000_000 // len(SHARDS), (tensor,)))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": SHARDS}))
    return folder


@contextmanager
def empty_hub(directory: Path) -> Iterator[str]:
    """Run a test Hub without any file, and yield its URL."""
    tokens = directory / "tokens.json"
    tokens.write_text(json.dumps({TOKEN: {"user": "me", "role": "write"}}))
    argv = [sys.executable, "-m", "testing.local_hub", "--root", str(directory / "hub"), "--port", "0"]
    argv += ["--tokens", str(tokens)]
    with subprocess.Popen(argv, cwd=paths.ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            yield server.stdout.readline().split(" at ")[1].split()[0]
        finally:
            server.terminate()


def measure(argv: list[str], scratch: Path) -> dict[str, float]:
    """Run an upload to an empty Hub, and return its seconds, CPU seconds and peak memory."""
    with tempfile.TemporaryDirectory(dir=scratch) as name, empty_hub(Path(name)) as url:
        own = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        environment = {
            **own,
            "HF_ENDPOINT": url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": f"{name}/home",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        begin = time.monotonic()
        process = subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"exit code {process.returncode}: {' '.join(argv)}")
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mib": usage.ru_maxrss // 1024,
    }


def main() -> None:
    """Measure both in turns, and print the comparison as JSON."""
    megabytes, pairs = (*map(int, sys.argv[1:]), *(MEGABYTES, PAIRS)[len(sys.argv) - 1 :])
    with tempfile.TemporaryDirectory(prefix="llm-bridge-upload-") as name:
        scratch = Path(name)
        model = make_model(scratch / "model", megabytes)
        archive = scratch / attempt_dir.NODE_ARCHIVE
        archive.write_bytes(node_archive.build())
        ours = [sys.executable, str(archive), "upload", "--input_tokenizer_and_model_dir", str(model)]
        commands = {
            "llm_bridge": [*ours, "--repo_id", REPO],
            "hf_upload": [str(Path(sys.executable).with_name("hf")), "upload", REPO, str(model), "--private"],
        }
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
        for number in range(pairs):
            # Each is the first of a pair in turn: the disk still writes what the one before has sent.
            for name in list(commands)[:: -1 if number % 2 else 1]:
                runs[name].append(measure(commands[name], scratch))
    found: dict[str, Any] = {"megabytes": megabytes, "runs": runs}
    for key in ("seconds", "cpu_seconds", "peak_mib"):
        medians = {name: statistics.median(run[key] for run in runs[name]) for name in runs}
        found[f"median_{key}"] = medians
        found[f"llm_bridge_to_hf_upload_{key}"] = round(medians["llm_bridge"] / medians["hf_upload"], 2)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
