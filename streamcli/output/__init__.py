"""Events in, the bytes of an output format out.

Nothing is written here and nothing is asked for: a format says what there is to write, somebody else writes it.
"""
