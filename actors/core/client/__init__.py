"""What every client of a broker is made of: the connection, and numbered batches on their way.

The producer's core stands here; the consumer's core uses the same connection and the same outbox.
"""
