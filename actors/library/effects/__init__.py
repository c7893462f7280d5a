"""`tx.effect`: calls of the outside world, with a durable intent before and the result after."""
