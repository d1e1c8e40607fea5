"""The command: arguments, environment and standard streams in, an exit status out.

What was asked for is parsed, checked, put together and handed to the storeys below. Only this storey knows options,
standard streams, signals and the terminal.
"""
