"""A language model: loaded, hooked, run, finetuned."""
