"""The sink: move events from the event log to Parquet, once each, and answer questions on them."""
