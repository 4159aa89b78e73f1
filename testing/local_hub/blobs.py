"""Content of files, stored once under its sha256: `blobs/ab/cd/abcd...`."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from pathlib import Path

from .errors import HubError


def git_blob_sha1(data: bytes) -> str:
    """Return git's object id of a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """Return the small text that git stores in place of a Git-LFS file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


class BlobStore:
    """Store of blobs, each of which is either complete and verified, or absent."""

    def __init__(self, root: Path) -> None:
        self._blobs = root / "blobs"
        self.incoming = root / "incoming"
        self._blobs.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.incoming, ignore_errors=True)  # incomplete blobs of a killed server
        self.incoming.mkdir(parents=True)

    def path(self, sha256: str) -> Path:
        """Return the path at which a blob is stored."""
        return self._blobs / sha256[:2] / sha256[2:4] / sha256

    def size(self, sha256: str) -> int | None:
        """Return the size of a stored blob, None if there is no such blob."""
        try:
            return self.path(sha256).stat().st_size
        except FileNotFoundError:
            return None

    def receive(self) -> Incoming:
        """Begin to receive a blob; use it as a context manager."""
        return Incoming(self)

    def put(self, data: bytes) -> str:
        """Store bytes in memory and return their sha256."""
        sha256 = hashlib.sha256(data).hexdigest()
        if self.size(sha256) is None:
            with self.receive() as incoming:
                incoming.write(data)
                incoming.finish(sha256, len(data))
        return sha256


class Incoming:
    """Blob that is being received: write chunks, then finish() with the expected hash; otherwise it is deleted."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._path = store.incoming / uuid.uuid4().hex
        self._file = self._path.open("xb")
        self._hash = hashlib.sha256()
        self._size = 0

    def __enter__(self) -> Incoming:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    def write(self, chunk: bytes) -> None:
        """Append a chunk."""
        self._file.write(chunk)
        self._hash.update(chunk)
        self._size += len(chunk)

    def finish(self, sha256: str, size: int) -> None:
        """Store the blob if it has the announced content, refuse it otherwise."""
        if self._size != size or self._hash.hexdigest() != sha256:
            raise HubError(
                400,
                f"received {self._size} bytes with sha256 {self._hash.hexdigest()}, but {size} bytes with "
                f"sha256 {sha256} were announced; nothing was stored, upload the file again",
            )
        self._file.flush()
        os.fsync(self._file.fileno())
        target = self._store.path(sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self._path, target)
