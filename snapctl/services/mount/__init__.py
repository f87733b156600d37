"""A live container as a directory in which each volume and snapshot is a file.

`files` says what the files are and works on the event loop; `binding` is called by libfuse's threads and carries each
call over to the loop; `directory` is what has to be so before and after.
"""
