"""What each client of a broker has: a connection, and numbered batches in flight.

The producer's core lives here; the consumer's core uses the same connection and in-flight window.
"""
