"""The `combiner` command."""

import os

# gRPC's C core writes lines of its own to stderr, one for each certificate that it refuses, for instance. The
# command says what is wrong in its own words. Looked at only when gRPC is first imported: before all else.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
