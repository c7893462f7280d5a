"""What makes the tables: the one of the orders, and the outbox."""
