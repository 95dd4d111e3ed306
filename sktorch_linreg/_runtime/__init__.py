"""The machine and the language: what needs no knowledge of regression."""
