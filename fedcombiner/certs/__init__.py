"""A private certificate authority, for stacks whose names no public one signs for (extra `certs`)."""
