"""What users touch: App, Producer, handlers, sinks, test kit. The public names are in ../__init__.py.

Nothing here draws on a terminal or parses a command line; only the test kit knows the simulator.
"""
