"""The parts of the MinIO store: requests, layout of the bucket, writing, reading, deleting."""
