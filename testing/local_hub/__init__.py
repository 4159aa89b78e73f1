"""Small server for the part of the Hugging Face Hub protocol that tests and demo need.

It serves unmodified `huggingface_hub` clients (1.33 and 2.4) that run with `HF_HUB_DISABLE_XET=1`: create and
delete model and dataset repositories, upload by commit with Git-LFS (basic and multipart), list, and download
with ranges. Start it with `python -m testing.local_hub --root DIR`. What it does not do: Spaces, Xet,
`.gitignore` rules, search. It listens on the loopback interface by default
and is not made for hostile networks.
"""
