"""The one shell of each actor: core, driver, log and transport put together, turned from outside.

Processes, the embedded queue, the test kit, the Maelstrom node and the simulator all turn these.
A shell takes its doors (ports.py) as arguments and knows neither threads nor sockets.
"""
