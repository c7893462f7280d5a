"""The settings of the project: one application, one SQLite file, named by SHOP_DB."""

import os

SECRET_KEY = os.environ.get("SECRET_KEY", "of an example: nothing is signed with it")
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "testserver"]
ROOT_URLCONF = "examples.web_django.urls"
INSTALLED_APPS = ["examples.web_django"]
USE_TZ = True
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("SHOP_DB", "shop.db"),
        "OPTIONS": {
            # The relay reads while requests write; a request waits for its turn at its BEGIN.
            "init_command": "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL",
            "transaction_mode": "IMMEDIATE",
        },
    }
}
