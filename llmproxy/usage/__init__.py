"""What the models were used for, by whom, and at what cost."""
