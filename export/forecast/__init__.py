"""What an engine needs and how fast it can be, before there is one."""
