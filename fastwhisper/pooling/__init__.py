"""Open models that are shared, under one budget of bytes."""
