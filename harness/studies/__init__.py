"""Studies of the rooms below: causal tracing, localisation, REMEDI's benchmarks, sweeps, the contract, durability."""
