"""Ways to write pages of tables; each file is one, found by :mod:`harness.reports.registry`."""
