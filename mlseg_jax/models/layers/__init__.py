"""What the parts of networks are made of."""
