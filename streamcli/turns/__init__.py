"""What one turn of a conversation needs besides the model: attachments, tools, the file that remembers.

The user's files and programs in, content blocks and messages out. Nothing here knows the network or the command.
"""
