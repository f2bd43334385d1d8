"""From pictures of any size to logits over ranks, and to results, in tiles."""
