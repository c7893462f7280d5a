"""What a handler gets: a message as a place in a stored batch, and typed payloads."""
