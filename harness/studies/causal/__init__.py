"""Causal tracing: which hidden states carry a fact."""
