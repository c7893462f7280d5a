"""The actors as pure state machines: no clock, chance, input, output or logging."""
