"""Studies that are built from the rooms below: causal tracing, localisation, REMEDI's benchmarks, sweeps."""
