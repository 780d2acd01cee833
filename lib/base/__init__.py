"""What a profile starts from where it is made here: weights out of a package, natural text, base transcoders, the card."""
