"""What is done once to an object store before the services use it, and what tidies it up."""
