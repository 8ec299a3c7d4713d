"""From a plan to a record: what is run, in which order, how it goes on after it was stopped, what is kept."""
