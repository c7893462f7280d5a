"""Where the view is."""

from django.urls import path

from examples.web_django.views import take_order

urlpatterns = [path("orders", take_order)]
