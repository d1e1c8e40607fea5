"""The command: words, environment and descriptors in, an exit status out.

What was asked is understood, checked, put together and handed to the storeys below. Only here are options, standard
streams, signals and the terminal known.
"""
