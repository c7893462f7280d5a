"""What was seen: sets of 128-bit fingerprints that grow for ever in bounded memory.

Rule: numpy arrays and immutable buffers only; no files, no clock, no threads. A whole batch is one
call, and no id becomes a Python object. Only who meets explicit ids imports this folder, because
numpy is large. docs/IDS.md tells how the parts fit together.
"""
