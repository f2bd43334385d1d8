"""From files to batches; `pipeline` is the front door."""
