"""The study of a finetuned tool user."""
