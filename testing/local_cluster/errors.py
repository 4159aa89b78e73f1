"""Exception of this package."""


class LocalClusterError(RuntimeError):
    """An operation on the local cluster failed; the message has the cause, the place, and the next action."""
