"""Files as messages: rows are read, numbered and sent, each exactly once.

Here: formats, ids from rows, and the resume after a crash. Sending belongs to `producing`.
"""
