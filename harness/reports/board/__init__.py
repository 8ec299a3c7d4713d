"""Records to a site of static pages: an overview, a page for each record, editor and task, and comparisons."""
