"""The study of what SAE features mean: seven kinds of text, specialists, layers and sites."""
