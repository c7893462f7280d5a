"""The `oncemq` command."""
