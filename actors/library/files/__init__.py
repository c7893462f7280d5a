"""Files as messages: rows read, numbered and sent, each exactly once over any number of runs."""
