"""What the shop keeps of an order."""

from django.db import models


class Order(models.Model):
    """An order, under the id that its customer's program chose."""

    id = models.CharField(max_length=100, primary_key=True)
    customer = models.CharField(max_length=100)
    cents = models.PositiveBigIntegerField()

    def __str__(self) -> str:
        return self.id
