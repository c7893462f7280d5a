"""The actors as pure state machines: events in, an `Outcome` out.

No clock, randomness, input, output or logging: what must be equal on replay comes in with an event
and is written into a record. May import the vocabulary only. `broker`, `client` and `consumer`
do not know each other, except that a consumer is also a client.
"""
