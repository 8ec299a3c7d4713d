"""Sweeps of canonical examples: draw configurations, train, choose inside a ball, tell."""
