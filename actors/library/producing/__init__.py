"""The producer that users hold: sends gather, one I/O thread sends, acks return.

Numbering and resending are decided in `core/client`; this folder adds threads, bounds and futures.
"""
