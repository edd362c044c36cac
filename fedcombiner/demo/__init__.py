"""What `combiner demo` trains: a small network on handwritten digits, by clients in a process of their own."""
