"""The mathematics that editors share: keys, values, second moments, descent, hypernetworks, retrieval."""
