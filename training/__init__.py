"""Training: data, losses, fine-tuning and evaluation. Needs the ``train`` extra; importing this needs nothing."""
