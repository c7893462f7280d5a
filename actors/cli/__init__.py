"""The `oncemq` command: arguments in, tables, JSON lines and exit status out.

One file for each verb, and `output.py` for what they share. A verb parses, calls the library or
the proof, and prints; it decides nothing. May import everything below; only `sim*.py` import `sim`.
"""
