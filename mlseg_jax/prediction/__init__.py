"""What a user calls and sees: the segmenter, files of results, pictures of them."""
