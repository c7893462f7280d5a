"""The proof from files alone: for every id, accepted once, processed once, pending or parked."""
