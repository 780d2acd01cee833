"""How a chat model ends a list, chapters 16 to 18."""
