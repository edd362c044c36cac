#!lua flags=no-writes
return unended(a.kind)
