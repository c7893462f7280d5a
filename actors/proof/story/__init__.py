"""The story of one message, for `oncemq explain`."""
