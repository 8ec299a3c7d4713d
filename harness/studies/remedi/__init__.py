"""REMEDI's benchmarks: what an edit of an entity entails."""
