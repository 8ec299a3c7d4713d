"""Records to what a person reads: tables of the terminal, leaderboards, curves."""
