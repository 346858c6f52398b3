"""What changed inside the model: the paper's analyses as plain arrays (`abft analyze`)."""
