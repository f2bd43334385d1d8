"""From pictures of any size to logits over ranks, and from these to results, in tiles."""
