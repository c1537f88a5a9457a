"""What must be fast: the head and the loss in one pass, without a tensor of N x V elements."""
