"""What a handler receives: a message of a stored batch, decoded on demand.

Here also: typed payloads, `Message[Order]`. May import no other folder of the library.
"""
