"""Localisation versus editing: five problems, every layer, and the regression on tracing effects."""
