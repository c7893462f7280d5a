"""The simulated world: disk, network and clock, the same for the same seed.

The shells and cores of production run here unchanged; what differs is the doors under them. No
real clock, thread, file or socket. May import `shells` and below; never `runtime` or `library`.
"""
