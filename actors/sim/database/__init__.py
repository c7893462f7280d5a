"""A database of users in a simulated world, and a process's connection to it."""
