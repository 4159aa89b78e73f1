"""Programs that run on a job's nodes, from the archive ``node.pyz`` (``remote/node_archive.py``)."""
