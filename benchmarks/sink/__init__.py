"""What the sink costs and holds: from a real Kafka to closed Parquet files."""
