"""The command line: arguments and the environment in, text and exit codes out.

Nothing here decides what happens to a container; that is the engine's and the services' business. Their modules are
imported inside the commands that use them, since start-up is paid at every call.
"""
