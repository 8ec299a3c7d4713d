"""Ways to write records for others' tools; each file is one, found by :mod:`harness.reports.export`."""
