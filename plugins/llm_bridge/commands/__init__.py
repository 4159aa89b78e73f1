"""Commands of ``python -m llm_bridge``: one module each, with ``add_arguments(parser)`` and ``main(args)``."""
