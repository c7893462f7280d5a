"""A Django project whose view takes an order and sends a message in one transaction."""
