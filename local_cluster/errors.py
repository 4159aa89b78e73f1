"""The one exception of this package."""


class LocalClusterError(RuntimeError):
    """Something about the local cluster failed; the text says what, where, and what to do next."""
