"""Rules for uploads through Git-LFS: by extension (see .gitattributes), or by size."""

from __future__ import annotations

LFS_EXTENSIONS = (
    "7z", "arrow", "bin", "bz2", "ckpt", "gguf", "gz", "h5", "model", "msgpack", "npy", "npz", "onnx",
    "parquet", "pickle", "pkl", "pt", "pth", "safetensors", "tar", "tgz", "wasm", "xz", "zip", "zst",
)  # fmt: skip

# The Hub's limit for files inside the commit request.
REGULAR_FILE_LIMIT = 10 * 1024 * 1024

# Every new repository starts with this file, as on the Hub: clients find a file that they did not upload.
GIT_ATTRIBUTES = "".join(f"*.{ext} filter=lfs diff=lfs merge=lfs -text\n" for ext in LFS_EXTENSIONS).encode()


def needs_lfs(path: str, size: int) -> bool:
    """Return whether a file must be uploaded through Git-LFS."""
    return size > REGULAR_FILE_LIMIT or path.rsplit(".", 1)[-1].lower() in LFS_EXTENSIONS
