"""Where records become durable: regions in order, the breaker before them, the spool behind."""
