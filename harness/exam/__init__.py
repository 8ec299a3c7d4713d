"""Scoring: tasks, the lm-eval adapter, what documents contribute, and the statistics of it."""
