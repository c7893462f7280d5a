"""The story of one message, for `oncemq explain`.

Here: which message a question means, and its path through log, ledgers and events. Judges nothing.
"""
