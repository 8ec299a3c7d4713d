"""Whether edits last: the same questions after further edits, fine-tuning, quantisation, and a round trip to disk."""
