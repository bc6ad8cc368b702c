"""Chips that are not here: their own compilers, and what those say of a program."""
