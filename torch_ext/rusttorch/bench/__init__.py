"""Every op against stock torch, torch.compile and NumPy: python -m rusttorch.bench --help."""
