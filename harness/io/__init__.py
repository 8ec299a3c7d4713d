"""Files that appear whole or not at all, tensors with a manifest, plain text, the cache, and progress."""
