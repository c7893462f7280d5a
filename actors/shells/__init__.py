"""The one shell of each actor: core, driver, log and transport, put together once.

Processes, the embedded queue, the test kit, the Maelstrom node and the simulator all turn these.
A shell takes its doors (`ports.py`) as arguments; it knows neither threads nor sockets. `ledger` and
`tables` hold the two doors of a consumer's ledger. May import `driver`, `ports`, `storage`, `codec`,
`core` and the vocabulary.
"""
