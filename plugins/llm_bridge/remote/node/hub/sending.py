"""Sending of files to the Hub: large files first, then one commit with all; the log has lines of the progress.

After a kill the Hub has each file that was sent to its end, also before the commit, and it is not sent again.
"""

from __future__ import annotations

import importlib.util
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm_bridge.remote.node.hub.model_folder import LocalFile, difference

# Smaller files travel together, within the commit or just before it. The Hub stores no larger file in git itself.
LARGE_BYTES = 10_000_000
# Seconds between two lines of the progress.
INTERVAL_SECONDS = 30.0
HASHING_THREADS = 4
# Files that Git-LFS sends at once, as many as `hf upload`. Xet's client sends the parts of one file in parallel.
LFS_THREADS = 5
# Linux: bytes that this process has read. Neither Xet's client nor that of Git-LFS has a better hook.
IO_COUNTS = Path("/proc/self/io")

Step = Callable[[str, Callable[[], Any]], Any]


class Progress:
    """Progress of an upload: its files and bytes, and its rate.

    Args:
        files: Files to send.
    """

    def __init__(self, files: list[LocalFile]) -> None:
        self.count, self.total = len(files), sum(file.size for file in files)
        self._lock = threading.Lock()
        self._sent, self._sent_bytes, self._in_flight = 0, 0, 0
        self._started = self._last_time = time.monotonic()
        self._before = self._last_bytes = bytes_read()

    @contextmanager
    def file(self, size: int) -> Iterator[None]:
        """Count a file that is sent in the block; several may be sent at once.

        Args:
            size: Its size in bytes.
        """
        with self._lock:
            if not self._in_flight:
                self._before = bytes_read()
            self._in_flight += size
        yield
        with self._lock:
            self._in_flight -= size
            self._before += size
            self._sent += 1
            self._sent_bytes += size

    def line(self) -> str:
        """Return the state of the upload, with the rate since the line before."""
        now, read = time.monotonic(), bytes_read()
        seconds, rate = now - self._started, (read - self._last_bytes) / max(now - self._last_time, 1e-3)
        self._last_time, self._last_bytes = now, read
        with self._lock:
            done = self._sent_bytes + min(max(read - self._before, 0), self._in_flight)
        return (
            f"{self._sent} of {self.count} files, {done / 1e6:.1f} of {self.total / 1e6:.1f} MB, "
            f"{rate / 1e6:.1f} MB/s, {seconds:.0f} s so far"
        )


def bytes_read() -> int:
    """Return the bytes that this process has read from files; 0 where the system does not count them."""
    try:
        found = re.search(r"rchar: (\d+)", IO_COUNTS.read_text())
    except OSError:
        return 0
    return int(found[1]) if found else 0


@contextmanager
def progress_lines(activity: str, files: list[LocalFile]) -> Iterator[Progress]:
    """Print a line at the beginning, and others while the block runs.

    Args:
        activity: First word of the lines.
        files: Files that are sent in the block.
    """
    progress = Progress(files)
    print(f"{activity} {progress.count} files ({progress.total / 1e6:.1f} MB)")
    ended = threading.Event()

    def report() -> None:
        while not ended.wait(INTERVAL_SECONDS):
            print(f"{activity}: {progress.line()}")

    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    try:
        yield progress
    finally:
        ended.set()
        reporter.join()


def changes(api: Any, repo_id: str, revision: str, files: list[LocalFile]) -> tuple[str, list[LocalFile]]:
    """Return the newest commit of a branch, and the files that it has not, or has with other content.

    Args:
        api: An ``HfApi`` with the token.
        repo_id: Repository on the Hub, ``OWNER/NAME``.
        revision: Branch or commit.
        files: Files to compare.
    """
    head = api.model_info(repo_id, revision=revision).sha
    present = remote_files(api, repo_id, head)
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        found = list(pool.map(lambda file: difference(file, present.get(file.path)), files))
    return head, [file for file, problem in zip(files, found, strict=True) if problem]


def pull_request_with(api: Any, repo_id: str, title: str, files: list[LocalFile]) -> tuple[str, str] | None:
    """Return the newest commit and the page of an open pull request that has all files; None without one.

    Args:
        api: An ``HfApi`` with the token.
        repo_id: Repository on the Hub, ``OWNER/NAME``.
        title: Title of the pull request.
        files: Files to compare.
    """
    pulls = api.get_repo_discussions(repo_id, discussion_type="pull_request", discussion_status="open")
    for pull in pulls:
        if pull.title == title:
            head, changed = changes(api, repo_id, f"refs/pr/{pull.num}", files)
            if not changed:
                return head, pull.url
    return None


def remote_files(api: Any, repo_id: str, revision: str) -> dict[str, Any]:
    """Return the files of a repository (``RepoFile`` of huggingface_hub) by path.

    Args:
        api: An ``HfApi`` with the token.
        repo_id: Repository on the Hub, ``OWNER/NAME``.
        revision: Branch or commit.
    """
    entries = api.list_repo_tree(repo_id, revision=revision, recursive=True)
    return {entry.path: entry for entry in entries if hasattr(entry, "blob_id")}  # folders have none


def send_large(
    api: Any,
    repo_id: str,
    files: list[LocalFile],
    progress: Progress,
    step: Step,
    *,
    revision: str,
    create_pr: bool = False,
) -> None:
    """Send the large files, a few at once by Git-LFS and one after the other by Xet; a commit has to follow.

    Args:
        api: An ``HfApi`` with the token.
        repo_id: Repository on the Hub, ``OWNER/NAME``.
        files: Files, of which the large ones are sent.
        progress: Progress of the upload.
        step: Runs a function under a name, and repeats it while the Hub is busy.
        revision: Branch of the commit.
        create_pr: True if the commit will be a pull request.
    """
    large = [file for file in files if file.size >= LARGE_BYTES]

    def send(file: LocalFile) -> None:
        with progress.file(file.size):
            # The operation remembers that its file was sent, so that the commit does not send it again.
            step(
                f"Sending {file.path}",
                lambda: api.preupload_lfs_files(
                    repo_id, [file.operation], revision=revision, create_pr=create_pr, free_memory=False
                ),
            )
        print(f"Sent {file.path}: {progress.line()}")

    if _uses_xet():  # its client hashes while it sends
        for file in large:
            send(file)
        return
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        list(pool.map(lambda file: file.sha256, large))
    with ThreadPoolExecutor(LFS_THREADS) as pool:
        sending = [pool.submit(send, file) for file in large]
        try:
            for each in sending:
                each.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _uses_xet() -> bool:
    from huggingface_hub import constants

    return not constants.HF_HUB_DISABLE_XET and importlib.util.find_spec("hf_xet") is not None
