"""What ABSGD is compared with: --method of train.py."""
