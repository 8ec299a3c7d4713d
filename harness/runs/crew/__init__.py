"""Who carries out many pieces of work."""
