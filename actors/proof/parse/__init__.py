"""From bytes to facts: a second reader of every file format, which shares no code with the first."""
