"""Programs that submit the same jobs and notice their ends, one per peer; see ``protocol.py``."""
