"""What a user calls and sees: segmenting pictures, drawing and writing the results."""
