"""A partner API as this product is for: inventory and direct-store-delivery, and it is audited."""
