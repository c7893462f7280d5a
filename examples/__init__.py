"""Programs that show OnceMQ at work."""
