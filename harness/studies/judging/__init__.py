"""A judge marks what was generated: right, wrong or refused."""
