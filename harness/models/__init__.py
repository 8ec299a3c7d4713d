"""Language models: loading, where their parts are, what enters and leaves them, and several texts in one row."""
