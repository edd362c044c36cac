#!lua flags=no-writes
return lease_views()
