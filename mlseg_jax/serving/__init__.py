"""A page and an API over HTTP, for people and programs with pictures to segment."""
