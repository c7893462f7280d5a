"""A FastAPI program whose handler takes an order and sends a message in one transaction."""
