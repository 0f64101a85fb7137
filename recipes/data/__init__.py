"""What --data can name: read, checked, made imbalanced or noisy, in an order that resumes."""
