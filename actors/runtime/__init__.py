"""The shell around the cores: real disk, sockets, clock, processes, events and settings."""
