"""An editor held to every promise, on one model: what ``harness contract`` runs and the tests run on many families."""
