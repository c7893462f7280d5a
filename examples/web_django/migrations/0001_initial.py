"""The table of orders, as `manage.py makemigrations` writes it."""

from django.db import migrations, models


class Migration(migrations.Migration):
    """Make the table."""

    initial = True
    operations = (
        migrations.CreateModel(
            name="Order",
            fields=[
                (
                    "id",
                    models.CharField(max_length=100, primary_key=True, serialize=False),
                ),
                ("customer", models.CharField(max_length=100)),
                ("cents", models.PositiveBigIntegerField()),
            ],
        ),
    )
