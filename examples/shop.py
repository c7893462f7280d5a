"""A shop: orders come in, each customer's bill is summed up, an invoice line goes out.

    python broker.py &
    python examples/shop.py                              # sends three orders; run it twice
    python consumer.py examples.shop:app --until-idle 1  # bills them
    python -m oncemq state --group billing               # what was billed, from the files

Kill any of them at any time and start it again: each order counts once.
"""

from __future__ import annotations

from oncemq import App, Message, Tx

app = App()


@app.consumer("orders", group="billing")
def bill(order: Message, tx: Tx) -> None:
    """Add an order to its customer's bill; all of this counts once, or not at all."""
    customer = str(order.key)
    cents = order.value["cents"]
    tx.state[customer] = tx.state.get(customer, 0) + cents
    tx.send("invoices", {"order": order.id, "cents": cents}, key=customer)


def main() -> None:
    """Send the orders. Sent again, they are found to be there already."""
    orders = [("o-1", "alice", 250), ("o-2", "bob", 1999), ("o-3", "alice", 50)]
    with app.producer() as producer:
        for order, customer, cents in orders:
            pending = producer.send("orders", {"cents": cents}, id=order, key=customer)
            ack = pending.result(timeout=10)
            print(order, "was there already" if ack.duplicate else f"stored at {ack.offset}")


if __name__ == "__main__":
    main()
