"""A small server that speaks the part of the Hugging Face Hub protocol that our tests and demo need.

It serves unmodified `huggingface_hub` clients (1.33 and 2.4) that run with `HF_HUB_DISABLE_XET=1`: create and
delete model and dataset repositories, upload by commit with Git-LFS (basic and multipart), list, and download
with ranges. Start it with `python -m local_hub --root DIR`. What it does not do: pull requests, Spaces, Xet,
`.gitignore` rules, checks of model cards, search. It listens on the loopback interface unless told otherwise
and is not made for hostile networks.
"""
