"""The study of thirty vehicles: kinds of SAEs, features of a word, and what it does to edit them."""
