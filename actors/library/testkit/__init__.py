"""`Harness`: a user's handlers in a test, with a real broker and real ledgers in memory."""
