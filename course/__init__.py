"""What the notebooks import: models, data, training, checks and plots around `kernels`."""
