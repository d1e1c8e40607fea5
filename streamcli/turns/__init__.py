"""What one turn of a conversation needs beside the model: attachments, tools, the file that remembers.

Files and programs of the user's in, content blocks and messages out. Nothing here knows the network or the command.
"""
