"""A page and an API over HTTP, for people and programs that want a picture segmented."""
