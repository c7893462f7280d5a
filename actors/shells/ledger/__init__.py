"""A ledger as files, before and at its opening: where it lies, what a join reports of it.

The door that a shell opens its ledger through, for consumers without a SQL sink. What a record
means belongs to `core/consumer`; reading and moving whole ledgers belongs to `library/ledgers`.
May import what `shells` may import.
"""
