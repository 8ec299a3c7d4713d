"""What an edit and an editor are, editors by name, the order of edits, and what is kept of them in files."""
