"""The lake: where files lie, how they are stored, and whether they agree with the ledger."""
