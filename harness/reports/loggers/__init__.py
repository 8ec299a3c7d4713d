"""Programs that keep track of runs; each file logs to one, found by :mod:`harness.reports.run_log`."""
