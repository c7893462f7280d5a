"""OnceMQ: an exactly-once message queue. Users import it as `oncemq`; this package is its inside."""

__version__ = "0.1.0"
__oncemq__ = True  # `oncemq.py` looks for this mark: a user's own package may be called `actors`
