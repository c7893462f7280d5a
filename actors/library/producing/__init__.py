"""The producer that users hold: sends gather, one I/O thread sends, verdicts come back."""
