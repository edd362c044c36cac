"""What `combiner demo` trains: a small network on digits, by clients in a process of their own."""
