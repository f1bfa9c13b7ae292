"""What a trained model does: measured on data, on files, and against perturbations."""
