"""Pages, charts and studies of finished runs."""
