"""The usual `manage.py`: `python -m examples.web_django migrate`, then `... runserver`."""

import os
import sys

from django.core.management import execute_from_command_line

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "examples.web_django.settings")
execute_from_command_line(sys.argv)
