"""What an installation of the server is set up with: its settings, its tokens, and checks of both.

It lies in the library, and not with the server, so that `auroraedge config check` works where only the wheel is.
"""
