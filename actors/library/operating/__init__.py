"""What operators do: topics, groups, dead letters, open effects; the commands call this."""
