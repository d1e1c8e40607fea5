"""Events in, the bytes of an output format out.

Nothing is written here: a format says what there is to write, the command writes it.
"""
