"""Pictures to logits over ranks to label maps: windows, scales, flips, tiles."""
