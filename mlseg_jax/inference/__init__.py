"""Pictures to logits over ranks to maps, segments, instances: windows, tiles."""
