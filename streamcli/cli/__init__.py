"""The command: options → what was asked (`args`) → what to do (`resolve`) → doing it (`run`) → a status (`main`)."""
