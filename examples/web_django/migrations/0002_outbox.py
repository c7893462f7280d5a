"""The outbox, in the same database as the orders."""

from django.db import migrations

from oncemq import outbox


class Migration(migrations.Migration):
    """Make the table; going back leaves it, since messages may wait in it."""

    dependencies = (("web_django", "0001_initial"),)
    operations = (
        migrations.RunPython(
            lambda _apps, schema_editor: outbox.create(schema_editor.connection),
            migrations.RunPython.noop,
        ),
    )
