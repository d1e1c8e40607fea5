"""Many prompts: a file of requests in, a file of results out, asked here or through the Message Batches API.

Memory is bounded however long the input is, and whatever ends a run, the next one goes on where it stopped. Nothing
here knows the command, its options or the terminal.
"""
