"""What `serving.py` measures a server with: the server's process, its clients, and the scenarios, some a file."""
