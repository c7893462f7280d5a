"""One view: an order is kept and told to the world in one transaction."""

import json

from django.db import connection, transaction
from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from examples.web_django.models import Order
from oncemq import outbox


@csrf_exempt
@require_POST
def take_order(request: HttpRequest) -> JsonResponse:
    """Take {"id", "customer", "cents"}; the same order again is taken once."""
    try:
        given = json.loads(request.body)
        order_id, customer, cents = str(given["id"]), str(given["customer"]), int(given["cents"])
    except (ValueError, TypeError, KeyError):
        return JsonResponse({"error": "expected id, customer and cents"}, status=400)
    with transaction.atomic():
        order, new = Order.objects.get_or_create(
            id=order_id, defaults={"customer": customer, "cents": cents}
        )
        if (order.customer, order.cents) != (customer, cents):
            return JsonResponse({"error": f"{order_id} is another order"}, status=409)
        if new:
            outbox.send(connection, "orders", {"cents": cents}, id=order_id, key=customer)
    return JsonResponse({"id": order_id, "new": new}, status=201 if new else 200)
