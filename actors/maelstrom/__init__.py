"""A node of the Maelstrom test bench: JSON lines in and out, the same cores inside."""
