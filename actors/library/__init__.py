"""What users call: App, Producer, handlers, sinks, test kit, operators' acts.

One folder for each concept; the public names are listed in `actors/__init__.py`. Nothing here
draws on a terminal, parses a command line or configures logging. May import everything below; only
the test kit may import `sim`.
"""
